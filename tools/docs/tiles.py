"""Draw ``docs/figures/tiles.svg``, what the one pass keeps where: ``python -m tools.docs.tiles``."""

from __future__ import annotations

from pathlib import Path

from ..command import run

FILE = Path(__file__).parents[2] / "docs" / "figures" / "tiles.svg"
BLUE, ORANGE, GREEN, GREY, INK = "#56B4E9", "#E69F00", "#8FD6BF", "#D9D9D9", "#222222"  # after Okabe and Ito
TILES, CURRENT = 7, 3
LEFT, TOP, WIDTH, HEIGHT = 190, 90, 66, 84


def box(x: float, y: float, width: float, height: float, fill: str, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="{fill}" stroke="{INK}"{dash}/>'


def text(x: float, y: float, words: str, anchor: str = "middle", size: int = 14) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="{INK}">{words}</text>'


def arrow(x: float, y: float, path: str) -> str:
    return f'<path d="M{x} {y} {path}" stroke="{INK}" stroke-width="2" marker-end="url(#tip)"/>'


def picture() -> str:
    """The drawing, on white so that it reads on a dark page too."""
    here = LEFT + CURRENT * WIDTH
    parts = [text(LEFT + TILES * WIDTH / 2, 22, "the bank, [M, D], read tile by tile →")]
    for i in range(TILES):
        x = LEFT + i * WIDTH
        parts.append(box(x + 3, 32, WIDTH - 6, 34, BLUE if i == CURRENT else "white"))
        parts.append(box(x + 3, TOP, WIDTH - 6, HEIGHT, ORANGE if i == CURRENT else "white", dashed=i != CURRENT))
        if i != CURRENT:
            parts.append(text(x + WIDTH / 2, TOP + HEIGHT / 2 + 5, "used" if i < CURRENT else "to come", size=12))
    parts += [
        text(here + WIDTH / 2, TOP + HEIGHT / 2 - 3, "tile of", size=13),
        text(here + WIDTH / 2, TOP + HEIGHT / 2 + 14, "scores", size=13),
        box(20, TOP, 150, HEIGHT, BLUE),
        text(95, TOP + 30, "a panel of queries"),
        text(95, TOP + 52, "student and teacher", size=12),
        arrow(here + WIDTH / 2, TOP + HEIGHT + 4, "v30"),
        box(190, 216, 462, 62, GREEN),
        text(421, 241, "per query: maximum, sums, logit gap, k candidates"),
        text(421, 263, "a few numbers, rescaled when a tile brings a larger maximum", size=12),
        box(20, 216, 150, 62, GREY),
        text(95, 241, "memory"),
        text(95, 263, "loss, gradients, top-k", size=12),
        arrow(190, 247, "h-12"),
        text(20, 306, "orange: in cache (CPU) or registers (GPU), then overwritten", "start", 12),
        text(652, 306, "dashed: not in existence now", "end", 12),
    ]
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 320" font-family="sans-serif" role="img">',
            "<title>One pass over the bank</title>",
            f'<defs><marker id="tip" markerWidth="6" markerHeight="6" refX="3" refY="3" orient="auto">'
            f'<path d="M0 0 L6 3 L0 6 z" fill="{INK}"/></marker></defs>',
            '<rect width="680" height="320" fill="white"/>',
            *parts,
            "</svg>\n",
        ]
    )


def main() -> None:
    """Write the picture."""
    FILE.write_text(picture(), encoding="utf-8")


if __name__ == "__main__":
    run(main)
