"""How intensities become numbers in [0, 1]. A scaling is a function in ``INTENSITIES`` that gives its range."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from action.errors import InputError

HU_RANGE = (-200.0, 250.0)
"""Window of soft tissue in Hounsfield units."""
LEVELS = (0.001, 0.005, 0.05, 0.25, 0.5, 0.75, 0.95, 0.995, 0.999)
"""Fractions of the voxels whose quantiles are compared. ``minmax`` scales from the second to the last but one."""
_SAMPLE = 2**21


def quantiles(array: np.ndarray) -> tuple[float, ...]:
    """Intensities at ``LEVELS``, each that of a voxel: between two finite ones there may be no finite mean."""
    flat = array.reshape(-1)
    step = max(1, flat.size // _SAMPLE)
    while math.gcd(step, flat.size) > 1:  # else whole columns would be left out
        step += 1
    sample = np.sort(flat[::step])
    return tuple(float(value) for value in sample[np.rint((sample.size - 1) * np.array(LEVELS)).astype(np.intp)])


def minmax(array: np.ndarray, known: Sequence[float]) -> tuple[float, float]:
    """From the 0.5 % to the 99.5 % quantile of the volume, so that a few odd voxels change nothing.

    Where these are equal, most voxels are background: the others count alone.
    """
    _, low, *_, high, _ = known
    if low < high:
        return low, high
    others = array[array != low]
    if others.size == 0:
        return low, low
    _, below, *_, above, _ = quantiles(others)
    return min(low, below), max(low, above)


def hu(array: np.ndarray, known: Sequence[float]) -> tuple[float, float]:
    """The soft tissue of CT: -200 to 250 HU."""
    return HU_RANGE


INTENSITIES: dict[str, Callable[[np.ndarray, Sequence[float]], tuple[float, float]]] = {"minmax": minmax, "hu": hu}
"""The known scalings: each gives the intensities of a volume [Z, Y, X] that become 0 and 1, from its ``quantiles``."""


def intensity_limits(array: np.ndarray, intensity: str, known: Sequence[float] | None = None) -> tuple[float, float]:
    """The intensities of a volume [Z, Y, X] that become 0 and 1 under a scaling, a name in ``INTENSITIES``.

    ``known``: its ``quantiles``, where they are.

    Raises:
        InputError: another ``intensity``.
    """
    if intensity not in INTENSITIES:
        raise InputError(f"unknown intensity scaling '{intensity}': choose one of {', '.join(INTENSITIES)}")
    return INTENSITIES[intensity](array, quantiles(array) if known is None else known)


def scale_intensity(array: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Intensities of any shape as float32, clipped to [0, 1]; 0 where the ``limits`` are equal."""
    low, high = limits
    if high <= low:
        return np.zeros(array.shape, np.float32)
    scaled: np.ndarray = array.astype(np.float32)
    np.clip(scaled, np.float32(low), np.float32(high), out=scaled)
    scaled -= np.float32(low)
    scaled /= np.float32(high - low)
    np.minimum(scaled, np.float32(1), out=scaled)  # the limits' distance is rounded, too
    return scaled
