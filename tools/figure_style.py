"""One style for every figure of the README and of the pages, in a light and a dark variant.

Colours are those of Okabe and Ito, which people of every colour vision tell apart. A drawing function knows no theme:
it names a colour by its role, and text, axes and ``INK`` follow the theme that is in force. The ground is transparent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure

Theme = Literal["light", "dark"]

# Places in the theme's list of colours, which matplotlib looks up when it draws.
OURS, EAGER, COMPILED, FULL, TEACHER, OTHER, PLAIN, INK = (f"C{i}" for i in range(8))

# Blue is too dark for a dark page and light blue too pale for a white one: they change places. The last is the text's.
COLORS: dict[Theme, tuple[str, ...]] = {
    "light": ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#808080", "#1F2328"),
    "dark": ("#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#808080", "#E6EDF3"),
}


@contextmanager
def style(theme: Theme) -> Iterator[None]:
    """Matplotlib's settings for a theme, until the block ends."""
    colors = COLORS[theme]
    ink = colors[-1]
    settings = {
        "axes.prop_cycle": cycler(color=colors),
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
        "font.size": 12,  # of figures that are 8 inches wide: half of that can still be read
        "axes.titlesize": "medium",
        "figure.titlesize": "medium",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": ink,
        "grid.alpha": 0.2,
        "lines.linewidth": 2,
        "lines.markersize": 5,
        "legend.frameon": False,
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "figure",  # the same drawing gives the same file
    }
    with mpl.rc_context(settings):
        yield


def save(draw: Callable[[], Figure], path: Path) -> None:
    """Write a drawing as ``<path>-light.svg`` and ``<path>-dark.svg``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for theme in COLORS:
        with style(theme):
            draw().savefig(f"{path}-{theme}.svg", format="svg", metadata={"Date": None})
