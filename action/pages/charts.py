"""Curves over the updates of a run, as what a template needs to draw them in SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log10
from typing import Any, NamedTuple

import numpy as np

LEFT, RIGHT, TOP, BOTTOM = 46, 452, 18, 226
"""Of the axes in a drawing of 460 x 260: so narrow that its text can be read on a phone."""
NUMBER = 12
"""Width that the number of a stage needs."""
POINTS = 240
"""Of a line: means of as many parts show no less on a screen."""
DECADES = 4
"""Between the largest value and the smallest that a logarithmic axis shows."""


class Line(NamedTuple):
    """A line of a chart.

    Args:
        name: in the legend.
        style: class of ``page.css``, which colour and dash.
        x, y: finite points, in order.
    """

    name: str
    style: str
    x: np.ndarray
    y: np.ndarray


class Drawn(NamedTuple):
    """A line in the drawing's coordinates: legend name, style, and path."""

    name: str
    style: str
    path: str


class Tick(NamedTuple):
    """A mark of an axis: where, and its text."""

    at: float
    text: str


class Stage(NamedTuple):
    """Where a stage begins: of its line, of its number, and the number."""

    line: float
    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """Lines in the drawing's coordinates.

    Args:
        title: what the values are.
        lines: what is drawn.
        x_ticks, y_ticks: marks of the axes.
        stages: where they begin.
        data: what the script shows under a pointer.
    """

    title: str
    lines: list[Drawn]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    stages: list[Stage]
    data: dict[str, Any] = field(repr=False)


def chart(title: str, lines: Sequence[Line], begins: Sequence[int], last: int, *, log: bool = False) -> Chart:
    """Lines over the updates 1 to ``last``; their values lie in 0 to 1, or on a logarithmic axis of their own.

    Args:
        title: what the values are.
        lines: to draw; a line without points has its place in the legend.
        begins: first update of every stage.
        last: update.
        log: whether the axis is logarithmic; values that are not above 0 are left out then.
    """
    thinned = [_thinned(line, log) for line in lines]
    low, high = (0.0, 1.0)
    if log:
        every = np.concatenate([line.y for line in thinned]) if thinned else np.empty(0)
        top = float(every.max()) if every.size else 1.0
        bottom = max(float(every.min()), top / 10**DECADES) if every.size else 0.1
        low, high = log10(bottom), log10(top)
        low, high = (low - 0.05, high + 0.05) if high - low < 0.1 else (low, high)

    def across(x: float) -> float:
        return round(LEFT + (x - 1) / max(last - 1, 1) * (RIGHT - LEFT), 1)

    def up(y: float) -> float:
        value = log10(y) if log else y
        return round(BOTTOM - (min(max(value, low), high) - low) / (high - low) * (BOTTOM - TOP), 1)

    paths = [Drawn(line.name, line.style, _path([(across(x), up(y)) for x, y in _pairs(line)])) for line in thinned]
    y_ticks = _decades(low, high) if log else [(v / 4, f"{v / 4:g}") for v in range(5)]
    data = {
        "last": last,
        "span": [LEFT, RIGHT],
        "lines": [
            {"name": line.name, "x": line.x.tolist(), "y": [float(f"{y:.4g}") for y in line.y]} for line in thinned
        ],
    }
    return Chart(
        title,
        paths,
        [Tick(across(x), f"{x:,}".replace(",", " ")) for x in _round_steps(last)],
        [Tick(up(y), text) for y, text in y_ticks],
        _stages([across(x) for x in begins]),
        data,
    )


def _stages(lines: Sequence[float]) -> list[Stage]:
    """Numbers right of their lines, and apart where lines are not; so that all of them are inside the drawing."""
    places = [float(LEFT - NUMBER)]
    for line in lines:
        places.append(max(line + 3, places[-1] + NUMBER))
    last = float(RIGHT)
    found = []
    for i, line in reversed(list(enumerate(lines))):
        last = min(places[i + 1], last)
        found.append(Stage(line, last, str(i + 1)))
        last -= NUMBER
    return found[::-1]


def _round_steps(last: int) -> list[int]:
    """The first update, round numbers between, and the last where it is far enough from them."""
    rough = max(last / 4, 1)
    power = 10 ** floor(log10(rough))
    step = next(ceil(factor * power) for factor in (1, 2, 5, 10) if factor * power >= rough)
    inner = list(range(step, last + 1, step))
    return [1, *inner] if step > 1 else inner


def _path(places: Sequence[tuple[float, float]]) -> str:
    """A line through all places, a stroke where there is only one."""
    if len(places) == 1:
        return f"M{places[0][0] - 3:.1f} {places[0][1]} h6"
    return " ".join(f"{'L' if i else 'M'}{x} {y}" for i, (x, y) in enumerate(places))


def _pairs(line: Line) -> list[tuple[float, float]]:
    return list(zip(line.x.tolist(), line.y.tolist(), strict=True))


def _thinned(line: Line, log: bool) -> Line:
    """The points, or the means of ``POINTS`` parts of them where there are more."""
    kept = np.isfinite(line.y) & ((line.y > 0) if log else True)
    x, y = line.x[kept], line.y[kept]
    if len(x) > POINTS:
        parts = np.array_split(np.arange(len(x)), POINTS)
        x, y = np.array([x[part[-1]] for part in parts]), np.array([y[part].mean() for part in parts])
    return line._replace(x=x, y=y)


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten within; 1, 2 and 5 of each where that leaves less than two."""
    powers = [(10.0**p, f"{10.0**p:g}") for p in range(ceil(low), floor(high) + 1)]
    if len(powers) >= 2:
        return powers
    steps = [factor * 10.0**p for p in range(floor(low), ceil(high) + 1) for factor in (1, 2, 5)]
    return [(step, f"{step:g}") for step in steps if low <= log10(step) <= high]
