"""Colours that people of every colour vision tell apart: of lines on a page or a figure, and of classes on images."""

from __future__ import annotations

LINES = ("#0067a5", "#d55e00", "#009270", "#cc6fa4", "#2a1d73")
"""On white: blue, vermilion, green and pink of Okabe and Ito, darker where they are too pale for a line, and indigo."""
LINES_ON_DARK = ("#56b4e9", "#e66a1f", "#12ad83", "#e8a6cd", "#f0e442")
"""The same in that order, but yellow for indigo."""
DASHES = ((), (7.0, 3.0), (2.0, 2.5), (9.0, 3.0, 2.0, 3.0))
"""Lengths of strokes and gaps; when all colours are taken, lines begin again with the next of them."""
STYLES = len(LINES) * len(DASHES)
"""Lines that differ; more begin again."""
CLASSES = (
    *("#56b4e9", "#d55e00", "#f0e442", "#0072b2", "#e69f00", "#cc79a7", "#009e73"),  # Okabe and Ito
    *("#999933", "#332288", "#8c510a"),
)
"""On grey images."""


def dash(index: int) -> tuple[float, ...]:
    """Strokes and gaps of a line, empty for one without gaps."""
    return DASHES[index // len(LINES) % len(DASHES)]


def line_color(index: int, *, dark: bool = False) -> str:
    """Colour of a line, on white or on a dark page."""
    return (LINES_ON_DARK if dark else LINES)[index % len(LINES)]
