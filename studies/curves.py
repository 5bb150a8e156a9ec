"""Dice on validation along the training of several runs: ``python -m studies.curves --runs [RUN,RUN]``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse import auto_cli
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from action.cli import Parser, run
from action.errors import InputError
from action.figures import read_columns
from action.run_folder import RunFolder
from tools.figure_style import save

from .plots import curves, write

COLUMNS = ("run", "updates", "minutes", "dice")


def points(folder: RunFolder) -> Iterator[tuple[int, float | None, float]]:
    """Updates, minutes since the training began, and mean validation Dice in % of a run.

    Minutes are known where the run was not interrupted.
    """
    if not folder.metrics.is_file():
        raise InputError(f"{folder.metrics} does not exist: give the folders of runs")
    steps, _, columns = read_columns(folder.metrics)
    dice = columns.get("val_dice", np.full(len(steps), np.nan))
    minutes = _minutes(folder)
    for i in np.flatnonzero(np.isfinite(dice)):
        yield int(steps[i]), minutes.get(int(steps[i])), float(100 * dice[i])


def _minutes(folder: RunFolder) -> dict[int, float]:
    """Of every validation, by updates."""
    if len(list(folder.events.glob("events.*"))) != 1:  # each start of a training opens another
        return {}
    events = EventAccumulator(str(folder.events)).Reload()
    begin = events.FirstEventTimestamp()
    return {score.step: (score.wall_time - begin) / 60 for score in events.Scalars("val_dice")}


def main(
    runs: Sequence[str] = (),
    names: Sequence[str] = (),
    against: Literal["updates", "minutes"] = "updates",
    output: Path = Path("curves"),
) -> None:
    """Write the table and draw the figure from it.

    Args:
        runs: folders of runs.
        names: of their lines; none: those of the folders.
        against: what the axis shows.
        output: of the table and the figure, without the ends .csv, -light.svg and -dark.svg.

    Raises:
        InputError: a folder without a run, no folder, or another number of names; a run that was interrupted, whose
            minutes are not known.
    """
    if not runs:
        raise InputError("--runs is empty: give the folders of runs")
    if names and len(names) != len(runs):
        raise InputError(f"--names has {len(names)} names for {len(runs)} runs: give one for each")
    folders = [RunFolder(folder) for folder in runs]
    labels = names or [folder.root.name for folder in folders]
    rows = [(name, *point) for name, folder in zip(labels, folders, strict=True) for point in points(folder)]
    if against == "minutes" and (unknown := {name for name, _, minutes, _ in rows if minutes is None}):
        raise InputError(f"{', '.join(sorted(unknown))} was interrupted: its minutes are not known")
    table = output.with_name(f"{output.name}.csv")
    write(table, COLUMNS, [(name, n, "" if m is None else f"{m:.1f}", f"{dice:.2f}") for name, n, m, dice in rows])
    save(partial(curves, table, against), output)


if __name__ == "__main__":
    run(lambda argv: auto_cli(main, args=argv, parser_class=Parser))
