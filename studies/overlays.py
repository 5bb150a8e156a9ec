"""Image, truth and what runs make of it: ``python -m studies.overlays --runs [RUN,RUN] --cases [CASE:SLICE]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jsonargparse import auto_cli
from jsonargparse.typing import NonNegativeInt

from action.cli import Parser, choose_device, load_config, run
from action.data.dataset import open_dataset
from action.data.fingerprint import load_fingerprint
from action.data.volumes import LoadedCase, load_cases, native_slice
from action.errors import InputError
from action.experiment import load_network
from action.figures import plot_overlays
from action.inference import segment
from action.metrics import dice_scores, mean_scores
from action.run_folder import RunFolder
from action.suggestions import did_you_mean
from tools.figure_style import COLORS, style

TEXT = 18  # points: a page shows these wide figures smaller than others


def predictions(folder: RunFolder, names: Sequence[str]) -> tuple[list[LoadedCase], list[np.ndarray], tuple[str, ...]]:
    """Cases of a run's data, the run's labels of them, and the names of the classes."""
    config = load_config(folder.config)
    cases = {case.name: case for case in open_dataset(Path(config.data), config.format).cases if case.label}
    for name in names:
        if name not in cases:
            raise InputError(f"{config.data} has no labelled case {name}{did_you_mean(name, list(cases))}")
    network, class_names = load_network(config, folder.best, choose_device("auto"))
    fingerprint = load_fingerprint(folder.fingerprint)
    loaded = load_cases([cases[name] for name in names], len(class_names), config.input, fingerprint)
    labels = [segment(network, case, config.input.size, config.evaluation.batch) for case in loaded]
    return loaded, labels, class_names


def around(truth: np.ndarray, margin: int) -> tuple[slice, slice]:
    """The square that holds the foreground of a slice and a margin, as far as the slice reaches; all without any."""
    if not truth.any():
        return slice(None), slice(None)
    low, high = (np.argwhere(truth).min(0), np.argwhere(truth).max(0))
    half = (high - low).max() / 2 + margin
    begin, end = np.maximum((low + high) / 2 - half, 0).astype(int), ((low + high) / 2 + half).astype(int) + 1
    return slice(begin[0], end[0]), slice(begin[1], end[1])


def main(
    runs: Sequence[str] = (),
    names: Sequence[str] = (),
    cases: Sequence[str] = (),
    titles: Sequence[str] = (),
    margin: NonNegativeInt = 25,
    output: Path = Path("overlays"),
) -> None:
    """Segment the cases with each run's best weights and draw a row for every case, with the volume's mean Dice.

    Args:
        runs: folders of finished runs on the same data.
        names: of their columns; none: those of the folders.
        cases: names, each with the number of a slice from 1, e.g. [patient089_frame01:5]; without a number, the slice
            with most foreground.
        titles: of the rows; none: case and slice.
        margin: pixels around the truth that are shown.
        output: of the figure, without the ends -light.png and -dark.png.

    Raises:
        InputError: no run or no case, another number of names or titles, a case that the data do not have with a label,
            or a slice that it does not have.
    """
    if not runs or not cases:
        raise InputError(f"--{'cases' if runs else 'runs'} is empty: name at least one")
    if names and len(names) != len(runs):
        raise InputError(f"--names has {len(names)} names for {len(runs)} runs: give one for each")
    if titles and len(titles) != len(cases):
        raise InputError(f"--titles has {len(titles)} titles for {len(cases)} cases: give one for each")
    columns = names or [Path(folder).name for folder in runs]
    wanted = [case.partition(":") for case in cases]
    by_run = [predictions(RunFolder(folder), [name for name, _, _ in wanted]) for folder in runs]
    shown, _, class_names = by_run[0]
    panels = []
    for i, (case, (name, _, number)) in enumerate(zip(shown, wanted, strict=True)):
        truth = case.required_truth
        if number and not (number.isdecimal() and 1 <= int(number) <= len(truth)):
            raise InputError(f"{name} has the slices 1 to {len(truth)}, not {number}")
        z = int(number) - 1 if number else int(np.count_nonzero(truth, axis=(1, 2)).argmax())
        part = around(truth[z], margin)
        labels = {"truth": truth[z][part]}
        for column, (_, found, _) in zip(columns, by_run, strict=True):
            score = mean_scores([dice_scores(found[i], truth, len(class_names))])[1]
            labels[f"{column}: {'no class' if score is None else f'{100 * score:.0f} %'}"] = found[i][z][part]
        panels.append((titles[i] if titles else f"{name}, slice {z + 1}", native_slice(case, z)[part], labels))
    output.parent.mkdir(parents=True, exist_ok=True)
    for theme in COLORS:
        with style(theme), mpl.rc_context({"font.size": TEXT}):
            plot_overlays(panels, class_names, output.with_name(f"{output.name}-{theme}.png"))


if __name__ == "__main__":
    run(lambda argv: auto_cli(main, args=argv, parser_class=Parser))
