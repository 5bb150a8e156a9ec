"""The picture of the method: its three stages, and what each loss compares."""

from __future__ import annotations

from collections.abc import Sequence

from ..figure_style import COMPILED, FULL, INK, OTHER, OURS, PLAIN, TEACHER, Theme
from .svg import arrow, box, picture, text

WIDTH, HEIGHT, GAP = 284, 384, 24  # of a stage, and the space before the next one
ROW = 36  # width of a row in the bank
ROWS, BANK = 7, 262  # rows in the bank, and where it lies
FILLED = 0.3
STUDENT = (0.95, 0.55, 0.4, 0.3, 0.2, 0.15, 0.1)  # similarities to the rows
TEACHER_SEES = (0.7, 0.85, 0.3, 0.15, 0.3, 0.1, 0.05)
CLASSES = (COMPILED, FULL, OTHER, FULL, COMPILED, OTHER, FULL)  # of the rows in the bank of pixels
NOTE = "moving average: the teacher follows the student. The best student segments."


def method(theme: Theme) -> str:
    """Three stages side by side."""
    shown = [
        stage(0, "1 Global distillation", "whole slices"),
        *similarities(0, "bank of slices", banks=1),
        stage(1, "2 Local distillation", "windows; the labels join"),
        *similarities(1, "a bank for every window", banks=3),
        stage(2, "3 Anatomical contrast", "hard pixels"),
        *contrast(2, "bank of pixels and classes"),
        *(arrow(_left(i) - GAP + 3, HEIGHT / 2, f"h{GAP - 11}") for i in (1, 2)),
        arrow(4, HEIGHT + 28, "h34", dashed=True),
        text(52, HEIGHT + 34, NOTE, 17, "start"),
    ]
    return picture("The method's three stages", 3 * WIDTH + 2 * GAP, HEIGHT + 50, shown, theme)


def stage(place: int, title: str, subject: str) -> str:
    """Frame, title, and the two networks."""
    x = _left(place)
    middle = x + WIDTH / 2
    parts = [
        box(x + 1, 1, WIDTH - 2, HEIGHT - 2, PLAIN),
        text(middle, 32, title, 19, bold=True),
        text(middle, 58, subject, 17),
        box(x + 16, 76, 104, 38, OURS, FILLED),
        text(x + 68, 101, "student", 17),
        box(x + WIDTH - 120, 76, 104, 38, TEACHER, FILLED),
        text(x + WIDTH - 68, 101, "teacher", 17),
        arrow(x + 122, 95, f"H{x + WIDTH - 128:g}", dashed=True),
    ]
    return "\n".join(parts)


def similarities(place: int, name: str, banks: int) -> list[str]:
    """Both networks' similarities to every row of the bank, which the loss compares."""
    x = _left(place)
    left = x + (WIDTH - ROWS * ROW) / 2
    parts = [arrow(x + 68, 116, "v16"), arrow(x + WIDTH - 68, 116, "v16")]
    for i, heights in enumerate(zip(STUDENT, TEACHER_SEES, strict=True)):
        for j, (height, color) in enumerate(zip(heights, (OURS, TEACHER), strict=True)):
            tall = 100 * height
            parts.append(box(left + i * ROW + 5 + 14 * j, BANK - 10 - tall, 12, tall, color, 0.85))
    for i in range(banks):
        parts += _bank(left, BANK + i * 27 / banks, 27 / banks - 3, [PLAIN] * ROWS)
    return [*parts, *_words(x, name, "match the teacher's", "similarities to the bank")]


def contrast(place: int, name: str) -> list[str]:
    """A pixel, the mean of its class, and rows of other classes."""
    x = _left(place)
    left = x + (WIDTH - ROWS * ROW) / 2
    pixel, mean = (x + 68, 168), (x + WIDTH - 68, 168)
    parts = [
        arrow(pixel[0], 116, "v34"),
        arrow(mean[0], 116, "v8"),
        _dot(*pixel, COMPILED),
        _dot(*mean, COMPILED),
        text(mean[0], 146, "pseudo-labels", 17),
        text(mean[0] + 8, 204, "class mean", 17),
        arrow(pixel[0] + 14, pixel[1], f"H{mean[0] - 18:g}"),
        text(pixel[0] + 40, pixel[1] - 8, "pull", 17),
        text(x + WIDTH / 2 + 10, 226, "push", 17),
    ]
    for i, color in enumerate(CLASSES):
        if color != COMPILED and i < 4:
            end = (left + (i + 0.5) * ROW, BANK - 6)
            parts.append(
                f'<path d="M{pixel[0]} {pixel[1] + 14} L{end[0]:g} {end[1]}" stroke="{INK}" stroke-width="2"/>'
            )
    return [*parts, *_bank(left, BANK, 24, CLASSES), *_words(x, name, "near its class,", "far from the others")]


def _left(place: int) -> float:
    return place * (WIDTH + GAP)


def _dot(x: float, y: float, color: str) -> str:
    return f'<circle cx="{x:g}" cy="{y:g}" r="11" fill="{color}" fill-opacity="0.85" stroke="{color}"/>'


def _bank(left: float, top: float, height: float, colors: Sequence[str]) -> list[str]:
    return [box(left + i * ROW + 3, top, ROW - 6, height, color, 0.6) for i, color in enumerate(colors)]


def _words(x: float, name: str, *loss: str) -> list[str]:
    lines = [text(x + WIDTH / 2, BANK + 60, name, 17)]
    return lines + [text(x + WIDTH / 2, BANK + 86 + 20 * i, words, 17, bold=True) for i, words in enumerate(loss)]
