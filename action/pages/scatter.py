"""Points of a plane by class, as what a template needs to draw them in SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from action.pages.charts import BOTTOM, LEFT, RIGHT, TOP
from action.palette import STYLES

SHAPES = (
    "m-2 0a2 2 0 1 0 4 0a2 2 0 1 0-4 0z",  # disc
    "m0-2.8l2.5 4.6h-5z",  # triangle
    "m-2-2h4v4h-4z",  # square
    "m-.8-2.8h1.6v2h2v1.6h-2v2h-1.6v-2h-2v-1.6h2z",  # cross
    "m0-3l3 3-3 3-3-3z",  # diamond
)
"""Around a point: classes are told apart without their colours."""


class Group(NamedTuple):
    """The points of a class: its name, the style of ``page.css``, the shape and the path of all points."""

    name: str
    style: str
    shape: str
    path: str


class Scatter(NamedTuple):
    """A drawing of points."""

    title: str
    caption: str
    groups: list[Group]


def scatter(title: str, caption: str, places: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> Scatter:
    """Points [P, 2] of classes [P], the background first; one scale for both axes, that of all but the outermost."""
    low, high = np.quantile(places, (0.005, 0.995), axis=0)
    centre = (low + high) / 2
    half = np.array([(RIGHT - LEFT) / 2, (BOTTOM - TOP) / 2])
    scale = float((2 * half / np.maximum(high - low, 1e-9)).min())
    middle = np.array([(RIGHT + LEFT) / 2, (BOTTOM + TOP) / 2])
    shown = np.clip((places - centre) * scale, -half, half) * (1, -1) + middle
    groups = []
    for index, name in enumerate(names):
        shape = SHAPES[index % len(SHAPES)]
        path = "".join(f"M{x:.1f} {y:.1f}{shape}" for x, y in shown[classes == index])
        groups.append(Group(name, f"f{(index - 1) % STYLES}" if index else "fb", shape, path))
    return Scatter(title, caption, groups)
