"""Batches of training slices.

What a step draws depends on the seed, the stage and the step alone, so that a resumed run sees the very batches that an
uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import torch
from torch import Tensor

from action.data.slice_file import Voxels
from action.data.slices import WholeSlices
from action.data.volumes import LoadedCase

RESIDENT = 0.25
"""Of a GPU's free memory, what the slices of a pool may take."""


def step_generator(seed: int, stage: int, step: int) -> np.random.Generator:
    """The generator of all random choices of one step."""
    return np.random.default_rng(np.random.SeedSequence([seed, stage, step]))


class SlicePool:
    """All slices of a set of cases, drawn epoch by epoch in random order.

    Args:
        cases: loaded cases.
        labels: whether their labels may be used; without, a batch has images only.
        seed: order of the epochs.
        device: where batches are made. The slices lie there, too, in half precision, unless they would take more than
            ``RESIDENT`` of a GPU's free memory.

    Attributes:
        drawn: names of the slices of the last batch, for messages.
    """

    def __init__(
        self, cases: Sequence[LoadedCase], *, labels: bool, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self._device = torch.device(device)
        store = self._device if _fits(cases, self._device) else torch.device("cpu")
        self.images = _slices([case.image for case in cases], store)
        self.labels = _slices([_label(case) for case in cases], store) if labels else None
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

    def batch(self, start: int, count: int, *, labels: bool = True) -> WholeSlices:
        """``count`` slices from place ``start``: image and, if the pool has them and ``labels`` asks for it, label."""
        chosen = self.indices(start, count)
        self.drawn = [self._names[i] for i in chosen]
        images = [self.images[i] for i in chosen]
        canvas = {"image": self._canvas(images)}
        if labels and self.labels is not None:
            canvas["label"] = self._canvas([self.labels[i] for i in chosen])
        return WholeSlices(canvas, [(height, width) for _, height, width in (image.shape for image in images)])

    def _canvas(self, taken: Sequence[Tensor]) -> Tensor:
        channels, height, width = (max(extents) for extents in zip(*(slice_.shape for slice_ in taken), strict=True))
        canvas = torch.zeros(len(taken), channels, height, width, device=self._device)
        for place, slice_ in zip(canvas, taken, strict=True):
            place[:, : slice_.shape[1], : slice_.shape[2]] = slice_
        return canvas


def _fits(cases: Sequence[LoadedCase], device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    needed = sum(array.nbytes for case in cases for array in (case.image, case.label) if array is not None)
    return needed <= RESIDENT * torch.cuda.mem_get_info(device)[0]


def _label(case: LoadedCase) -> Voxels:
    if case.label is None:
        raise ValueError(f"{case.name} has no label, but its labels are to be used")
    return case.label


def _slices(arrays: Sequence[Voxels], store: torch.device) -> Sequence[Tensor]:
    """All slices [channels, H, W] of arrays [Z, (channels,) H, W], a label's as one channel."""
    slices = _Slices(arrays)
    return slices if store.type == "cpu" else [slice_.to(store) for slice_ in slices]


class _Slices(Sequence[Tensor]):
    """Slices that are taken from their arrays, or read, when they are asked for: joined, they would be held twice."""

    def __init__(self, arrays: Sequence[Voxels]) -> None:
        self._arrays = arrays
        self._places = [(array, z) for array in range(len(arrays)) for z in range(len(arrays[array]))]

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        array, z = self._places[index]
        slice_ = torch.from_numpy(self._arrays[array][z])
        return slice_ if slice_.ndim == 3 else slice_[None]
