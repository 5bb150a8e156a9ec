"""Draw every picture of the README and of the pages: ``python -m tools.docs.pictures``.

What a picture shows lies in a table beside the code that measures it; nothing is measured or trained here. Each picture
is there twice, for light pages and for dark ones. Only pictures that hold images are made by ``studies.overlays``, from
finished runs.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.plots import draw
from benchmarks.table import read
from studies.plots import curves, dice

from ..command import run
from ..figure_style import COLORS, save
from .method import method
from .tiles import tiles

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "figures"
# Name of a table in studies/figures, and of its picture -> what draws it.
STUDIES = {"acdc_curves": curves, "acdc_dice": partial(dice, ylabel="test Dice %")}


def pictures(output: Path = FOLDER) -> None:
    """Draw all of them.

    Args:
        output: folder.
    """
    draw(read(ROOT / "benchmarks" / "figures" / "operators.csv"), output)
    for name, plot in STUDIES.items():
        save(partial(plot, ROOT / "studies" / "figures" / f"{name}.csv"), output / name)
    for drawing in (method, tiles):
        for theme in COLORS:
            (output / f"{drawing.__name__}-{theme}.svg").write_text(drawing(theme), encoding="utf-8")


if __name__ == "__main__":
    run(pictures)
