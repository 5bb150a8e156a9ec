"""Means with intervals of confidence, from patients drawn again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
"""Sets of patients that are drawn for an interval."""
COVERAGE = 0.95
_SEED = 0


class Interval(NamedTuple):
    """A mean and the percentiles between which 95 % of the resamples' means lie; NaN where nothing has a value."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether all of it lies on one side of 0."""
        return self.low > 0 or self.high < 0


class Resamples:
    """How often each case counts when its patients are drawn with replacement, as many as there are.

    The cases of a patient are drawn together: they are alike. Everything that is asked of one object has seen the same
    patients, so that differences are paired.

    Args:
        patients: of each case.
    """

    def __init__(self, patients: Sequence[str]) -> None:
        places = {name: place for place, name in enumerate(dict.fromkeys(patients))}
        rng = np.random.default_rng(_SEED)
        drawn = rng.multinomial(len(places), np.full(len(places), 1 / len(places)), RESAMPLES)
        self._weights = drawn[:, [places[name] for name in patients]].T.astype(float)

    def intervals(self, values: np.ndarray) -> list[Interval]:
        """Of each class, and last of the mean of the classes.

        Args:
            values: [classes, cases]; NaN where a case has no such value, which counts towards no mean.
        """
        there = np.isfinite(values)
        filled = np.where(there, values, 0.0)
        mean = _over_classes(filled.sum(1, keepdims=True), there.sum(1, keepdims=True))[:, 0]
        drawn = _over_classes(filled @ self._weights, there.astype(float) @ self._weights)
        return [Interval(float(m), *_percentiles(row)) for m, row in zip(mean, drawn, strict=True)]


def _over_classes(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means [classes + 1, R] of sums and counts [classes, R], the classes' mean last."""
    means = np.full(sums.shape, np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    there = np.isfinite(means)
    overall = np.full((1, sums.shape[1]), np.nan)
    np.divide(np.where(there, means, 0).sum(0), there.sum(0), out=overall[0], where=there.any(0))
    return np.concatenate([means, overall])


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if not values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(values, ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2))
    return float(low), float(high)
