"""A run's ``summary.json``, read again to be shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from action.data.text import read_json
from action.errors import InputError
from action.metrics import MEASURES, mean_std


def read_summary(path: Path) -> dict[str, Any]:
    """A run's ``summary.json``.

    Raises:
        InputError: it cannot be read, or was written by another version.
    """
    summary = read_json(path)
    try:
        rows = [summary["mean"], *summary["classes"].values()]
        known = all(isinstance(summary[key], dict) for key in ("cases", "classes")) and isinstance(summary["unit"], str)
        known = known and all({*MEASURES, "misses", "empty"} <= set(row) for row in rows)
        known = known and all(
            set(values) == set(summary["classes"])
            and all({*MEASURES, "miss", "empty"} <= set(v) for v in values.values())
            for values in summary["cases"].values()
        )
    except (KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise InputError(f"{path} is not a summary of this version: evaluate the run again, with --overwrite")
    assert isinstance(summary, dict)
    return summary


@dataclass(frozen=True)
class Head:
    """A measure as a column of a page: its name in ``summary.json``, its head with the unit, its decimals."""

    name: str
    head: str
    digits: int


def heads(unit: str) -> list[Head]:
    """All measures, distances in ``unit``."""
    return [
        Head(name, f"{measure.title} ({unit})" if measure.distance else measure.title, measure.digits)
        for name, measure in MEASURES.items()
    ]


def case_mean(by_class: Mapping[str, Mapping[str, Any]], measure: str) -> float | None:
    """Mean of a measure over the classes of a case that have it."""
    return mean_std([values[measure] for values in by_class.values()])[0]
