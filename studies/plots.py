"""The figure of a study: Dice by class, a panel for each number of labelled patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito: told apart by people of every colour vision.
COLORS = ("#999999", "#56b4e9", "#e69f00", "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#f0e442", "#000000")


def plot_dice(
    panels: Mapping[str, Mapping[str, np.ndarray]], classes: Sequence[str], ylabel: str, path: Path | str
) -> None:
    """Bars of the mean over seeds, a point for every seed.

    Args:
        panels: title -> method -> Dice in % of each seed and class [S, C], NaN where no patient has the class.
        classes: C names.
        ylabel: what the axis shows.
        path: of the figure.
    """
    figure = Figure(figsize=(1.6 + 1.35 * len(classes) * len(panels), 3.6), layout="constrained")
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, methods) in zip(row, panels.items(), strict=True):
        _draw(axes, methods, len(classes))
        axes.set(xticks=range(len(classes)), title=title)
        axes.set_xticklabels([name.replace(" ", "\n") for name in classes])
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    lowest = np.nanmin([np.nanmin(values) for methods in panels.values() for values in methods.values()])
    row[0].set(ylabel=ylabel, ylim=(max(0, 10 * np.floor(lowest / 10 - 1)), 100))
    row[-1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=150)


def _draw(axes: Axes, methods: Mapping[str, np.ndarray], classes: int) -> None:
    width = 0.84 / len(methods)
    for i, (name, values) in enumerate(methods.items()):
        dice = np.ma.masked_invalid(values)
        x = np.arange(classes) + (i - (len(methods) - 1) / 2) * width
        axes.bar(x, dice.mean(axis=0).filled(np.nan), 0.9 * width, label=name, color=COLORS[i % len(COLORS)])
        axes.plot(np.broadcast_to(x, dice.shape).ravel(), dice.ravel(), "k.", markersize=3.5)
