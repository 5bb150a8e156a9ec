"""Colours differ for people of every colour vision, and drawings follow the theme."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from action.palette import CLASSES, LINES, LINES_ON_DARK
from tools.figure_style import COLORS, INK, OURS, save

# What people see without one kind of cones, in linear light (Machado, Oliveira and Fernandes, 2009).
VISIONS = {
    "all cones": np.eye(3),
    "no long": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no medium": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no short": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(color: str, vision: str) -> np.ndarray:
    """CIELAB, in which a distance of about 2 is the smallest that is seen side by side."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(XYZ @ np.clip(VISIONS[vision] @ linear, 0, 1) / (0.9505, 1, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("colors", [CLASSES, COLORS["light"], COLORS["dark"]], ids=["classes", "light", "dark"])
def test_colours_differ(colors: tuple[str, ...], vision: str) -> None:
    distances = {pair: np.linalg.norm(lab(pair[0], vision) - lab(pair[1], vision)) for pair in combinations(colors, 2)}
    assert min(distances.values()) > 8, min(distances, key=distances.__getitem__)


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("colors, ground", [(LINES, "#f5f6f8"), (LINES_ON_DARK, "#1d2229")], ids=["light", "dark"])
def test_lines_of_a_page_differ_and_are_seen(colors: tuple[str, ...], ground: str, vision: str) -> None:
    for color, other in combinations((*colors, "#1c2128" if colors is LINES else "#e4e8ee"), 2):  # the mean's
        assert np.linalg.norm(lab(color, vision) - lab(other, vision)) > 11, (color, other)
    assert min(abs(lab(color, vision)[0] - lab(ground, vision)[0]) for color in colors) > 30


@pytest.mark.parametrize("vision", VISIONS)
def test_the_first_classes_differ_from_each_other_and_from_grey_images(vision: str) -> None:
    greys = [str(level) for level in np.linspace(0.15, 0.85, 8)]
    for color, other in combinations([*CLASSES[:4], *greys], 2):
        if color in CLASSES:
            assert np.linalg.norm(lab(color, vision) - lab(other, vision)) > 18, (color, other)


@pytest.mark.parametrize("theme, ground", [("light", "#ffffff"), ("dark", "#0d1117")])
def test_colours_are_seen_on_the_page(theme: str, ground: str) -> None:
    lightness = {color: lab(color, "all cones")[0] for color in (*COLORS[theme], ground)}
    assert min(abs(lightness[color] - lightness[ground]) for color in COLORS[theme]) > 25
    assert abs(lightness[COLORS[theme][-1]] - lightness[ground]) > 80


def test_a_drawing_follows_the_theme(tmp_path: Path) -> None:
    def draw() -> Figure:
        figure = Figure()
        axes = figure.subplots()
        axes.plot([0, 1], color=OURS)
        axes.axhline(0.5, color=INK)
        axes.set_title("words")
        return figure

    save(draw, tmp_path / "folder" / "picture")
    for theme, colors in COLORS.items():
        text = (tmp_path / "folder" / f"picture-{theme}.svg").read_text().lower()
        assert f"stroke: {colors[0].lower()}" in text and f"stroke: {colors[-1].lower()}" in text
        assert "words</text>" in text and "#ffffff" not in text and "<dc:date>" not in text
