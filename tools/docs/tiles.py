"""The picture of what the one pass keeps where."""

from __future__ import annotations

from ..figure_style import COMPILED, FULL, INK, OURS, PLAIN, Theme
from .svg import arrow, box, picture, text

TILES, CURRENT = 7, 3
LEFT, TOP, WIDTH, HEIGHT = 190, 90, 66, 84
FILLED = 0.3


def tiles(theme: Theme) -> str:
    """A panel of queries that walks over the tiles of the bank."""
    here = LEFT + CURRENT * WIDTH
    parts = [text(LEFT + TILES * WIDTH / 2, 22, "the bank, [M, D], read tile by tile →")]
    for i in range(TILES):
        x, now = LEFT + i * WIDTH, i == CURRENT
        parts.append(box(x + 3, 32, WIDTH - 6, 34, OURS if now else INK, FILLED if now else 0))
        parts.append(box(x + 3, TOP, WIDTH - 6, HEIGHT, COMPILED if now else INK, FILLED if now else 0, dashed=not now))
        if not now:
            parts.append(text(x + WIDTH / 2, TOP + HEIGHT / 2 + 5, "used" if i < CURRENT else "to come", 13))
    parts += [
        text(here + WIDTH / 2, TOP + HEIGHT / 2 - 3, "tile of"),
        text(here + WIDTH / 2, TOP + HEIGHT / 2 + 14, "scores"),
        box(20, TOP, 150, HEIGHT, OURS, FILLED),
        text(95, TOP + 36, "some queries"),
        text(95, TOP + 57, "student, teacher", 13),
        arrow(here + WIDTH / 2, TOP + HEIGHT + 4, "v30"),
        box(190, 216, 462, 62, FULL, FILLED),
        text(421, 241, "per query: maximum, sums, logit gap, k candidates"),
        text(421, 263, "a few numbers, rescaled when a tile brings a larger maximum", 13),
        box(20, 216, 150, 62, PLAIN, FILLED),
        text(95, 241, "memory"),
        text(95, 263, "loss, gradients, top-k", 12),
        arrow(190, 247, "h-12"),
        text(20, 306, "orange: in cache (CPU) or registers (GPU), then overwritten", 13, "start"),
        text(652, 306, "dashed: not in existence now", 13, "end"),
    ]
    return picture("One pass over the bank", 680, 320, parts, theme)
