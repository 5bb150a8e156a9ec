"""Batches of training slices.

What a step draws depends on the seed, the stage and the step alone, so that a resumed run sees the very batches that an
uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from action.data.slices import Slices
from action.data.volumes import LoadedCase


def step_generator(seed: int, stage: int, step: int) -> np.random.Generator:
    """The generator of all random choices of one step."""
    return np.random.default_rng(np.random.SeedSequence([seed, stage, step]))


class SlicePool:
    """All slices of a set of cases, drawn epoch by epoch in random order.

    Args:
        cases: loaded cases.
        labels: whether their labels may be used; without, a batch has images only.
        seed: order of the epochs.

    Attributes:
        drawn: names of the slices of the last batch, for messages.
    """

    def __init__(self, cases: Sequence[LoadedCase], *, labels: bool, seed: int) -> None:
        # Views of the cases' slices: a joined array would hold a large data set twice.
        self.images = [slice_ for case in cases for slice_ in case.image]
        self.labels = [slice_ for case in cases for slice_ in _label(case)] if labels else None
        self._names = [f"{case.name} slice {z + 1}" for case in cases for z in range(len(case.image))]
        self._seed = seed
        self.drawn: list[str] = []

    def __len__(self) -> int:
        return len(self.images)

    def indices(self, start: int, count: int) -> np.ndarray:
        """Places ``start`` to ``start + count`` of the endless sequence of shuffled epochs."""
        places = np.arange(start, start + count)
        epochs = places // len(self)
        orders = {
            int(e): np.random.default_rng(np.random.SeedSequence([self._seed, int(e)])).permutation(len(self))
            for e in np.unique(epochs)
        }
        return np.array([orders[int(e)][p % len(self)] for e, p in zip(epochs, places, strict=True)], dtype=np.int64)

    def batch(self, start: int, count: int) -> Slices:
        """``count`` slices from place ``start``: image [count, 1, H, W] float32 and, if used, label, same shape."""
        chosen = self.indices(start, count)
        self.drawn = [self._names[i] for i in chosen]
        batch = {"image": _stack(self.images, chosen)}
        if self.labels is not None:
            batch["label"] = _stack(self.labels, chosen)
        return batch


def _label(case: LoadedCase) -> np.ndarray:
    if case.label is None:
        raise ValueError(f"{case.name} has no label, but its labels are to be used")
    return case.label


def _stack(slices: Sequence[np.ndarray], chosen: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack([slices[i] for i in chosen])[:, None].astype(np.float32))
