"""Figures of a run: its progress, and test cases with truth and prediction drawn on the image."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from action.files import write_aside
from action.palette import CLASSES, dash, line_color

NOT_LOSSES = ("step", "stage", "lr")
SHARES = {"confident": "confident pixels"}
"""Columns between 0 and 1 that are no losses, and what the legend calls them."""
_CLASS_DICE = re.compile("val_(teacher_)?dice_")
DECADES = 1e4  # between the largest loss and the smallest that is shown


def is_loss(column: str) -> bool:
    """Whether a column of ``read_columns`` is a loss, and neither a Dice nor a share."""
    return not column.startswith("val_") and column not in SHARES


def plot_progress(metrics_csv: Path | str, output: Path | str) -> None:
    """Losses of every step, smoothed over the raw values; validation Dice and shares of pixels; stages are marked.

    Args:
        metrics_csv: rows with the columns ``step``, ``stage``, ``lr``, one per loss, ``val_dice`` and
            ``val_dice_<class>``; a field is empty where the row has no such value.
        output: PNG file, written aside and then renamed.
    """
    steps, stages, columns = read_columns(Path(metrics_csv))
    dice = {name: values for name, values in columns.items() if name.startswith("val_dice")}
    losses = {name: values for name, values in columns.items() if is_loss(name)}

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for index, name in enumerate(losses):
        there = np.isfinite(losses[name])
        x, y = steps[there], losses[name][there]
        upper.plot(x, y, color=line_color(index), alpha=0.22, linewidth=0.8)
        label = "loss, their weighted sum" if name == "loss" else name
        upper.plot(x, smoothed(y, stages[there]), linewidth=1.8, label=label, **_line(index))
    every = np.concatenate([values[(values > 0) & np.isfinite(values)] for values in losses.values()] or [np.empty(0)])
    if every.size:
        upper.set_yscale("log", nonpositive="mask")
        upper.set_ylim(bottom=every.max() / DECADES)  # the first steps of a distillation differ in rounding alone
    upper.set_ylabel("losses, without their weights")

    # The mean last, above the others; its colour is of no class.
    classes = [name for name in dice if name != "val_dice"] + [name for name in dice if name == "val_dice"]
    for index, name in enumerate(classes):
        there = np.isfinite(dice[name])
        if not there.any():
            continue
        overall = name == "val_dice"
        label = "mean" if overall else name.removeprefix("val_dice_")
        style = {"color": "black", "linewidth": 2.4} if overall else {"linewidth": 1.4, **_line(index)}
        lower.plot(steps[there], dice[name][there], marker="o", markersize=3, label=label, **style)
    for name in [name for name in SHARES if name in columns]:
        there = np.isfinite(columns[name])
        y = smoothed(columns[name][there], stages[there])
        lower.plot(steps[there], y, color="gray", linestyle=":", linewidth=1.6, label=SHARES[name])
    shares = any(name in columns for name in SHARES)
    lower.set(xlabel="step", ylabel="validation Dice, share of pixels" if shares else "validation Dice", ylim=(0, 1))
    _mark_stages((upper, lower), steps, stages)
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    _save(figure, output)


def plot_overlays(
    panels: Sequence[tuple[str, np.ndarray, Mapping[str, np.ndarray]]],
    class_names: Sequence[str],
    output: Path | str,
) -> None:
    """A row for each panel: the image alone, then with each of its labels, such as the truth and a prediction.

    Args:
        panels: (title, image [Y, X], name -> labels [Y, X] of class indices).
        class_names: background first.
        output: PNG file, written aside and then renamed.
    """
    colors = ListedColormap(_class_colors(len(class_names) - 1))
    columns = 1 + len(panels[0][2])
    figure = Figure(figsize=(3.2 * columns, 3.35 * len(panels) + 0.5), layout="constrained")
    rows = figure.subfigures(len(panels), 1, squeeze=False)[:, 0]
    for row, (title, image, labels) in zip(rows, panels, strict=True):
        row.suptitle(title, fontsize="medium")
        low, high = np.percentile(image, (0.5, 99.5))
        drawn = {"image": None, **labels}
        for axes, (name, shown) in zip(row.subplots(1, columns), drawn.items(), strict=True):
            axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
            if shown is not None:
                _draw_labels(axes, np.asarray(shown), colors)
            axes.set_title(name, fontsize="medium")
            axes.set_axis_off()
    handles = [Patch(color=colors(index), label=name) for index, name in enumerate(class_names[1:])]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False)
    _save(figure, output)


def _draw_labels(axes: Axes, labels: np.ndarray, colors: ListedColormap) -> None:
    """Each class as a tint with an outline, so that the image can be seen below it."""
    shown = np.ma.masked_equal(labels, 0)
    axes.imshow(shown, cmap=colors, vmin=1, vmax=max(colors.N, 2), alpha=0.35, interpolation="nearest")
    for index in np.unique(labels[labels > 0]):
        axes.contour(labels == index, levels=[0.5], colors=[colors(int(index) - 1)], linewidths=1.2)


def _mark_stages(panels: Sequence[Axes], steps: np.ndarray, stages: np.ndarray) -> None:
    """A dashed line where a stage ends; the stages' names and steps in one line above, so that they never overlap."""
    begins = [i for i in range(len(stages)) if i == 0 or stages[i] != stages[i - 1]]
    ends = [*begins[1:], len(steps)]
    for i in begins[1:]:
        for axes in panels:
            axes.axvline(steps[i] - 0.5, color="gray", linestyle="--", linewidth=1.2)
    spans = (f"{stages[i].replace('_', ' ')} {steps[i]}–{steps[j - 1]}" for i, j in zip(begins, ends, strict=False))
    panels[0].set_title("   ".join(spans), fontsize=9)


def smoothed(values: np.ndarray, stages: np.ndarray) -> np.ndarray:
    """Running mean within each stage, over a twentieth of its steps to either side."""
    result = np.empty(len(values))
    for stage in dict.fromkeys(stages.tolist()):
        member = stages == stage
        part = values[member]
        half = len(part) // 20
        sums = np.concatenate([[0.0], np.cumsum(part)])
        places = np.arange(len(part))
        first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(part))
        result[member] = (sums[last] - sums[first]) / (last - first)
    return result


def read_columns(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Steps, stages, every loss that has at least one number, and all classes' Dice; NaN where a row has none."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        names = [name for name in reader.fieldnames or () if name not in NOT_LOSSES]
    columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}
    # Classes stay, with a Dice or without: their places give them their colours, in every drawing the same.
    columns = {name: v for name, v in columns.items() if np.isfinite(v).any() or _CLASS_DICE.match(name)}
    steps = np.array([int(row["step"]) for row in rows], dtype=np.int64)
    return steps, np.array([row["stage"] for row in rows], dtype=object), columns


def _line(index: int) -> dict[str, Any]:
    return {"color": line_color(index), "linestyle": (0, dash(index)) if dash(index) else "-"}


def _class_colors(count: int) -> list[Any]:
    if count <= len(CLASSES):
        return list(CLASSES[:count])
    return [colormaps["hsv"](index / count) for index in range(count)]


def _save(figure: Figure, output: Path | str) -> None:
    FigureCanvasAgg(figure)  # draws without a display and without pyplot's global state
    with write_aside(Path(output)) as aside:
        figure.savefig(aside, dpi=110)
