"""Recognising a data set that has moved: the same names must hold the same volumes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from action.data.cases import natural_sort
from action.data.volumes import LoadedCase
from action.errors import InputError

TOLERANCE = 1e-3
"""For mean and standard deviation of intensities in [0, 1]: processors and devices round differently."""


def describe(cases: Iterable[LoadedCase]) -> dict[str, list[float]]:
    """For every case: slices, rows and columns of its file, mean and standard deviation of what the network sees."""
    return {case.name: describe_case(case) for case in cases}


def describe_case(case: LoadedCase) -> list[float]:
    """Of one case what ``describe`` says."""
    if case.description is not None:
        return case.description
    sums = torch.zeros(2, dtype=torch.float64)
    for slice_ in np.asarray(case.image):  # added up in float32 within a slice, far finer than the tolerance
        values = torch.from_numpy(slice_).float().ravel()
        sums += torch.stack([values.sum(), values.dot(values)])
    mean, square = (sums / math.prod(case.image.shape)).tolist()
    return [*case.shape, mean, math.sqrt(max(0.0, square - mean**2))]


def check_same_data(then: Mapping[str, Sequence[float]], now: Mapping[str, Sequence[float]]) -> None:
    """Refuse to go on with other data than a run began with.

    Raises:
        InputError: names the cases that are missing, new or different.
    """
    changed = natural_sort(then.keys() ^ now.keys())
    for name in natural_sort(then.keys() & now.keys()):
        (*shape, mean, std), (*shape_now, mean_now, std_now) = then[name], now[name]
        if shape != shape_now or abs(mean - mean_now) > TOLERANCE or abs(std - std_now) > TOLERANCE:
            changed.append(name)
    if changed:
        raise InputError(
            f"the data are not those that the run began with: {', '.join(changed)} changed; bring them back, say where "
            "they are with --data, or start another run"
        )
