"""Which of a run's networks its predictions come from: the one of the best validations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from action.run_folder import RunFolder, load_checkpoint


class Chosen(NamedTuple):
    """The update whose network is kept for predictions, and the network's Dice on the validation patients then."""

    step: int
    dice: float


def chosen_network(
    folder: RunFolder, steps: np.ndarray, columns: Mapping[str, np.ndarray], begins: Sequence[int]
) -> Chosen | None:
    """Read from ``best.pt`` when it was written; ``None`` before the first validation.

    Args:
        folder: of the run.
        steps: of ``read_columns``.
        columns: likewise.
        begins: rows in which the stages begin.

    Raises:
        InputError: the checkpoint is damaged.
    """
    if not folder.best.is_file():
        return None
    state = load_checkpoint(folder.best, torch.device("cpu"))
    stage, done = state.get("stage_index", 0), state.get("stage_step", 0)
    if not 0 <= stage < len(begins):
        return None
    step = int(steps[begins[stage]]) - 1 + done
    dice = columns["val_dice"][steps == step] if "val_dice" in columns else np.empty(0)
    return Chosen(step, float(dice[0])) if len(dice) and np.isfinite(dice[0]) else None
