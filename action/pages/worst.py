"""The cases that a run segments worst: test cases, or validation cases where nobody tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from action.cli import choose_device
from action.config import RunConfig
from action.data import findings
from action.data.cases import Case
from action.data.dataset import open_dataset
from action.data.fingerprint import load_fingerprint
from action.data.volumes import LoadedCase, load_case
from action.errors import InputError
from action.experiment import load_network
from action.inference import Member, Segmenter
from action.metrics import dice_scores
from action.pages.page import number
from action.pages.summary import case_mean
from action.pages.viewer import read_prediction, viewed
from action.run_folder import RunFolder

WORST = 6
"""Cases of which the slices are in the page."""


def worst_tested(folder: RunFolder, config: RunConfig, summary: dict[str, Any], data: str) -> Iterator[dict[str, Any]]:
    """The test cases of the lowest mean Dice, worst first, as the page's script needs them.

    Raises:
        InputError: the data are not there, or a file cannot be read.
    """
    cases = _cases(config, data)
    dice = {name: case_mean(by_class, "dice") for name, by_class in summary["cases"].items()}
    ranked = sorted((value, name) for name, value in dice.items() if value is not None)[:WORST]
    class_names = ["background", *summary["classes"]]
    load = _loader(folder, config, len(class_names))
    for value, name in ranked:
        if name not in cases or cases[name].label is None:
            raise InputError(f"{data} lacks {name} or its label: give the run's own data with --data")
        case = load(cases[name])
        prediction = read_prediction(folder.predictions / f"{name}.nii.gz", case, len(class_names))
        yield _shown(case, value, prediction, class_names)


def worst_validated(
    folder: RunFolder, config: RunConfig, patients: Sequence[str], data: str
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The same of the validation patients, whom the network that predictions come from segments here.

    Returns:
        The cases, and the names of the classes, background first.

    Raises:
        InputError: the data or the network are not there, or a file cannot be read.
    """
    cases = [case for case in _cases(config, data).values() if case.patient in patients and case.label is not None]
    device = choose_device("cpu" if config.device == "cpu" else "auto")
    network, class_names = load_network(config, folder.best, device)
    segmenter = Segmenter([Member(network, config.input.size)], config.evaluation.batch)
    worst: list[tuple[float, LoadedCase, np.ndarray]] = []
    for case in map(_loader(folder, config, len(class_names)), cases):
        prediction = segmenter.segment(case)
        scores = dice_scores(prediction, case.required_truth, len(class_names))
        if np.isfinite(scores).any():
            worst.append((float(np.nanmean(scores)), case, prediction))
            worst = sorted(worst, key=lambda found: (found[0], found[1].name))[:WORST]
    return [_shown(case, dice, prediction, class_names) for dice, case, prediction in worst], class_names


def _cases(config: RunConfig, data: str) -> dict[str, Case]:
    if not Path(data).is_dir():
        raise InputError(f"the run's data folder {data} does not exist: if it has moved, give --data")
    return {case.name: case for case in open_dataset(Path(data), config.format).cases}


def _loader(folder: RunFolder, config: RunConfig, classes: int) -> Callable[[Case], LoadedCase]:
    fingerprint = load_fingerprint(folder.fingerprint)

    def load(case: Case) -> LoadedCase:
        with findings.collected([]):  # the training has said what is odd
            return load_case(case, classes, config.input, fingerprint)

    return load


def _shown(case: LoadedCase, dice: float, prediction: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    return {"title": f"{case.name}, Dice {number(dice)}", **viewed(case, prediction, class_names)}
