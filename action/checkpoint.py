"""What the state in a checkpoint must be before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from action.errors import InputError

FORMAT = 1
"""Of the states that are written; to be raised when an older program would misread one. States without it are of 1."""


def check_state(state: Mapping[str, Any], path: Path) -> None:
    """Refuse the state of another program, or of a later version of this one.

    Args:
        state: what the file holds.
        path: the file, for the message.

    Raises:
        InputError: names the file, what it holds and what to do.
    """
    form = state.get("format", FORMAT)
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
            f"{path} is no checkpoint of a run: it lacks {lacks} and holds {', '.join(map(str, state)) or 'nothing'}; "
            "give the folder of a run that action.train has written"
        )
