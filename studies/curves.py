"""Dice on validation along the training of several runs: ``python -m studies.curves --runs [RUN,RUN]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse import auto_cli
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from action.cli import Parser, run
from action.errors import InputError
from action.figures import read_columns
from action.run_folder import RunFolder


def by_updates(folder: RunFolder) -> tuple[list[float], list[float]]:
    """Updates and mean validation Dice in % of a run."""
    if not folder.metrics.is_file():
        raise InputError(f"{folder.metrics} does not exist: give the folders of runs")
    steps, _, columns = read_columns(folder.metrics)
    dice = columns.get("val_dice", np.full(len(steps), np.nan))
    there = np.isfinite(dice)
    return steps[there].tolist(), (100 * dice[there]).tolist()


def by_minutes(folder: RunFolder) -> tuple[list[float], list[float]]:
    """Minutes since the training began and mean validation Dice in % of a run that was not interrupted."""
    events = EventAccumulator(str(folder.events)).Reload()
    begin, scores = events.FirstEventTimestamp(), events.Scalars("val_dice")
    return [(score.wall_time - begin) / 60 for score in scores], [100 * score.value for score in scores]


def plot(curves: dict[str, tuple[list[float], list[float]]], against: str, path: Path) -> None:
    """A line for every run."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, (x, dice) in curves.items():
        axes.plot(x, dice, label=name, linewidth=1.8)
    axes.set(xlabel=against, ylabel="validation Dice, %", ylim=(0, 100), xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=150)


def main(
    runs: Sequence[str] = (),
    names: Sequence[str] = (),
    against: Literal["updates", "minutes"] = "updates",
    output: Path = Path("curves.png"),
) -> None:
    """Draw the figure.

    Args:
        runs: folders of runs.
        names: of their lines; none: those of the folders.
        against: what the axis shows.
        output: the figure.

    Raises:
        InputError: a folder without a run, no folder, or another number of names.
    """
    if not runs:
        raise InputError("--runs is empty: give the folders of runs")
    if names and len(names) != len(runs):
        raise InputError(f"--names has {len(names)} names for {len(runs)} runs: give one for each")
    folders = [RunFolder(folder) for folder in runs]
    read = by_updates if against == "updates" else by_minutes
    labels = names or [folder.root.name for folder in folders]
    plot({name: read(folder) for name, folder in zip(labels, folders, strict=True)}, against, output)


if __name__ == "__main__":
    run(lambda argv: auto_cli(main, args=argv, parser_class=Parser))
