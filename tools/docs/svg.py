"""Parts of the pictures that are drawn by hand; colours are the roles of ``tools.figure_style``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..figure_style import COLORS, INK, Theme


def box(
    x: float, y: float, width: float, height: float, color: str = INK, opacity: float = 0.0, dashed: bool = False
) -> str:
    """A rectangle with an outline, filled as much as ``opacity`` says so that text reads on it in both themes."""
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4"'
    return f'<rect {place} fill="{color}" fill-opacity="{opacity:g}" stroke="{color}" stroke-width="1.5"{dash}/>'


def text(
    x: float, y: float, words: str, size: int = 14, anchor: str = "middle", color: str = INK, bold: bool = False
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}"{weight} fill="{color}">{words}</text>'


def arrow(x: float, y: float, path: str, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="M{x:g} {y:g} {path}" fill="none" stroke="{INK}" stroke-width="2"{dash} marker-end="url(#tip)"/>'


def picture(title: str, width: int, height: int, parts: Sequence[str], theme: Theme) -> str:
    """The file, without a ground of its own."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="DejaVu Sans, Verdana, sans-serif" role="img">',
        f"<title>{title}</title>",
        '<defs><marker id="tip" markerWidth="6" markerHeight="6" refX="3" refY="3" orient="auto">'
        f'<path d="M0 0 L6 3 L0 6 z" fill="{INK}"/></marker></defs>',
        *parts,
        "</svg>\n",
    ]
    return re.sub(r'"C(\d)"', lambda role: f'"{COLORS[theme][int(role[1])]}"', "\n".join(lines))
