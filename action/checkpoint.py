"""Checking the state in a checkpoint before it is used, and converting that of the first format."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from action.errors import InputError

FORMAT = 2
"""Format of the states that are written; raise it when an older program would misread one. Without a mark it is 1."""

RENAMED_IN_2 = {
    "student.network.": "network.student.",
    "teacher.network.": "network.teacher.",
    "student.global_head.": "stages.global_distillation.head.student.",
    "teacher.global_head.": "stages.global_distillation.head.teacher.",
    "student.predictor.": "stages.global_distillation.predictor.",
    "slice_bank.": "stages.global_distillation.bank.",
    "student.local_head.": "stages.local_distillation.head.student.",
    "teacher.local_head.": "stages.local_distillation.head.teacher.",
    "window_bank.": "stages.local_distillation.bank.",
    "student.representation.": "stages.anatomical_contrast.representation.student.",
    "teacher.representation.": "stages.anatomical_contrast.representation.teacher.",
    "pixel_bank.": "stages.anatomical_contrast.pixel_bank.",
    "class_shares.": "stages.anatomical_contrast.class_shares.",
}
"""Beginnings of the names of tensors in format 1, when every method had all heads and banks, and in format 2."""


def checked_state(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """The state of a checkpoint in today's format; one of another program or a later version is refused.

    Args:
        state: what the file holds.
        path: the file, for the message.

    Raises:
        InputError: names the file, what it holds and what to do.
    """
    form = state.get("format", 1)
    if not isinstance(form, int) or form > FORMAT:
        raise InputError(
            f"{path} has format {form!r}, but this version of action reads {FORMAT} at most (it was written with "
            f"PyTorch {state.get('torch', 'of unknown version')}): use the version of action that wrote it"
        )
    learner, names = state.get("learner"), state.get("class_names")
    has_weights = isinstance(learner, Mapping) and any(isinstance(value, Tensor) for value in learner.values())
    has_names = isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names)
    if not (has_weights and has_names):
        lacks = "weights under 'learner'" if not has_weights else "a list of names under 'class_names'"
        raise InputError(
            f"{path} is not a checkpoint of a run: it lacks {lacks} and holds "
            f"{', '.join(map(str, state)) or 'nothing'}; give the folder of a run that action.train has written"
        )
    return state if form == FORMAT else state | {"learner": _renamed(state["learner"])}


def without_unused(state: dict[str, Any], names: Collection[str], parameters: int) -> dict[str, Any]:
    """A state of format 1, in which baselines had ACTION's heads and banks as well, without what is not used.

    Args:
        state: as ``checked_state`` returns it.
        names: of the learner's tensors.
        parameters: that the optimiser updates; in format 1 the unused ones came after these.
    """
    learner = {name: value for name, value in state["learner"].items() if name in names}
    optimizer = state["optimizer"]
    groups = [group | {"params": group["params"][:parameters]} for group in optimizer["param_groups"]]
    return state | {"learner": learner, "optimizer": optimizer | {"param_groups": groups}}


def _renamed(learner: Mapping[str, Any]) -> dict[str, Any]:
    return {
        new + name.removeprefix(old): value
        for name, value in learner.items()
        for old, new in RENAMED_IN_2.items()
        if name.startswith(old)
    }
