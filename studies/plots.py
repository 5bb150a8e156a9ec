"""Figures of the studies, each from its table: Dice by class and method, and Dice along the training."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from tools.figure_style import COMPILED, EAGER, FULL, INK, OTHER, OURS, PLAIN, TEACHER

METHODS = {
    "labelled only": PLAIN,
    "Mean Teacher": TEACHER,
    "pseudo-labels, CutMix": COMPILED,
    "bidirectional copy-paste": EAGER,
    "UniMatch": OTHER,
    "ACTION": OURS,
    "fully labelled": FULL,
}
FURTHER = (EAGER, OTHER, COMPILED, TEACHER)  # of methods without a colour of their own


def write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table that a figure is drawn from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def colors(names: Sequence[str]) -> dict[str, str]:
    """A method's colour is the same in every figure; others take the next one."""
    others = [name for name in names if name not in METHODS]
    return METHODS | {name: FURTHER[i % len(FURTHER)] for i, name in enumerate(others)}


def dice(table: Path, ylabel: str) -> Figure:
    """Bars of the mean over seeds with a point for every seed; a panel for each number of labelled patients.

    Args:
        table: with the columns labelled, method, seed, class and dice in %, which is empty where no patient has the
            class.
        ylabel: what the axis shows.
    """
    rows = read(table)
    counts, classes = (list(dict.fromkeys(row[name] for row in rows)) for name in ("labelled", "class"))
    figure = Figure(figsize=(8, 1.3 + 2.5 * len(counts)), layout="constrained")
    panels = figure.subplots(len(counts), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, count in zip(panels, counts, strict=True):
        found: dict[str, dict[str, list[float]]] = {}
        for row in (row for row in rows if row["labelled"] == count):
            found.setdefault(row["method"], {}).setdefault(row["class"], []).append(float(row["dice"] or "nan"))
        _bars(axes, found, classes)
        axes.set(title=f"{count} labelled patient{'s' * (count != '1')}", ylabel=ylabel)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
    panels[-1].set_xticks(range(len(classes)), classes)
    panels[0].set_ylim(0, 100)
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _bars(axes: Axes, methods: Mapping[str, Mapping[str, Sequence[float]]], classes: Sequence[str]) -> None:
    width, color = 0.84 / len(methods), colors(list(methods))
    for i, (name, by_class) in enumerate(methods.items()):
        values = np.ma.masked_invalid(np.array([by_class[c] for c in classes]))  # [C, seeds]
        x = np.arange(len(classes)) + (i - (len(methods) - 1) / 2) * width
        axes.bar(x, values.mean(axis=1).filled(np.nan), 0.9 * width, label=name, color=color[name])
        axes.plot(np.broadcast_to(x[:, None], values.shape).ravel(), values.ravel(), ".", color=INK, markersize=4)


def curves(table: Path, against: str = "updates") -> Figure:
    """A line for every run.

    Args:
        table: with the columns run, updates, minutes and mean validation dice in %.
        against: the column of the horizontal axis.
    """
    rows = read(table)
    names = list(dict.fromkeys(row["run"] for row in rows))
    color = colors(names)
    figure = Figure(figsize=(8, 3.9), layout="constrained")
    axes = figure.subplots()
    for name in names:
        points = [(float(row[against]), float(row["dice"])) for row in rows if row["run"] == name and row[against]]
        axes.plot(*zip(*points, strict=True), label=name, color=color[name])
    axes.set(xlabel=against, ylabel="validation Dice, %", ylim=(0, 100), xlim=(0, None))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.9g}"))
    axes.grid()
    axes.legend(loc="lower right")
    return figure
