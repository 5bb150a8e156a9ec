"""The pictures are those that their command draws, are all shown, and in both themes."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from pages import PAGES, links

from tools.docs.pictures import FOLDER, pictures
from tools.figure_style import COLORS

SVG = "{http://www.w3.org/2000/svg}"
DRAWN = sorted(path.name for path in FOLDER.glob("*.svg"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    pictures(folder)
    return folder


def texts(picture: Path) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.parse(picture).iter(f"{SVG}text")]


def creator(picture: Path) -> str | None:
    """The version of matplotlib; none of a picture drawn by hand."""
    return ElementTree.parse(picture).findtext(".//{http://purl.org/dc/elements/1.1/}title")


def numbers(picture: Path) -> list[float]:
    """Where every line, bar, marker and rectangle is."""
    places = []
    for element in ElementTree.parse(picture).iter():
        for name in ("d", "x", "y", "width", "height"):
            places += map(float, re.findall(r"-?\d+\.?\d*", element.get(name, "")))
    return places


def test_the_command_draws_the_pictures_that_are_there(drawn: Path) -> None:
    assert sorted(path.name for path in drawn.iterdir()) == DRAWN, "run python -m tools.docs.pictures"


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_what_the_command_draws(drawn: Path, name: str) -> None:
    here, again = FOLDER / name, drawn / name
    assert texts(again) == texts(here), "run python -m tools.docs.pictures"
    tolerance = 0.01 if creator(again) == creator(here) else 10  # points, by which versions of matplotlib differ
    assert numbers(again) == pytest.approx(numbers(here), abs=tolerance), "run python -m tools.docs.pictures"


def test_drawing_again_gives_the_same_files(drawn: Path, tmp_path: Path) -> None:
    pictures(tmp_path)
    for name in DRAWN:
        assert (tmp_path / name).read_bytes() == (drawn / name).read_bytes()


@pytest.mark.parametrize("name", DRAWN)
def test_text_and_lines_have_the_colours_of_the_theme(name: str) -> None:
    theme = Path(name).stem.rpartition("-")[2]
    text = (FOLDER / name).read_text(encoding="utf-8").lower()
    ink = {theme: colors[-1].lower() for theme, colors in COLORS.items()}
    other = "light" if theme == "dark" else "dark"
    assert ink[theme] in text and ink[other] not in text
    allowed = {color.lower() for color in COLORS[theme]}
    assert set(re.findall("#[0-9a-f]{6}", text)) <= allowed, "another colour, which one of the themes may hide"


def test_every_picture_is_shown_and_each_with_its_twin() -> None:
    shown = {(page.parent / link).resolve().name for page in PAGES for link in links(page) if link.endswith(".svg")}
    assert shown == set(DRAWN)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        light = re.findall(r'<img alt="[^"]+" src="(\S+)-light\.\w+">', text)
        dark = re.findall(r'<source media="\(prefers-color-scheme: dark\)" srcset="(\S+)-dark\.\w+">', text)
        assert light == dark
        assert len(light) == len(re.findall("<picture>", text)) == len(re.findall(r"-light\.", text))
