# PYTHON_ARGCOMPLETE_OK
"""Evaluate a run on its test patients: ``python -m action.evaluate RUN``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from action.cli import add_processing, choose_device, command_parser, load_config, run
from action.data import findings
from action.data.cases import Case, raise_problems
from action.data.dataset import Dataset, open_dataset
from action.data.nifti import write_label
from action.data.split import load_split
from action.data.volumes import LoadedCase, load_case, load_cases, native_slice, unit_of
from action.ensemble import Ensemble, load_ensemble
from action.errors import InputError
from action.experiment import open_cache
from action.figures import plot_overlays
from action.files import check_targets, check_writable, write_aside
from action.metrics import MEASURES, ClassValues, case_metrics, confusion, mean_dice, summarize
from action.progress import track
from action.report import write_report
from action.run_folder import RunFolder


class Shown(NamedTuple):
    """The slice of a case with most foreground.

    Attributes:
        z: its place.
        truth: class indices [Y, X].
        prediction: likewise.
    """

    z: int
    truth: np.ndarray
    prediction: np.ndarray


def evaluate(folder: RunFolder, cases: Sequence[LoadedCase], device: torch.device) -> dict[str, Any]:
    """Segment the test cases with the best checkpoint (chosen on the validation patients) and write what came out.

    Writes ``predictions/<case>.nii.gz``, ``summary.json`` and ``overlays.png`` into the run's folder.
    """
    return _evaluate(load_ensemble([folder.root], device), folder, cases)


def _evaluate(ensemble: Ensemble, folder: RunFolder, cases: Sequence[LoadedCase]) -> dict[str, Any]:
    folder.predictions.mkdir(exist_ok=True)
    names, segmenter = ensemble.class_names, ensemble.segmenter
    results: dict[str, dict[int, ClassValues]] = {}
    shown: dict[str, Shown] = {}
    voxels = np.zeros((len(names), len(names)), np.int64)
    for case in track(cases, "test", "volume"):
        prediction = segmenter.segment(case)
        write_label(_target(folder, case.name), prediction, case.volume)
        truth = case.required_truth
        results[case.name] = case_metrics(prediction, truth, len(names), case.spacing)
        voxels += confusion(prediction, truth, len(names))
        z = int(np.count_nonzero(truth, axis=(1, 2)).argmax())
        shown[case.name] = Shown(z, truth[z].copy(), prediction[z].copy())  # whole volumes would add up
    summary = summarize(results, names, unit_of(cases))
    summary["mirror"] = segmenter.mirror
    summary["largest_component"] = [names[index] for index in segmenter.largest]
    summary["patients"] = {case.name: case.patient for case in cases}
    summary["confusion"] = {
        name: dict(zip(names, row, strict=True)) for name, row in zip(names, voxels.tolist(), strict=True)
    }
    with write_aside(folder.summary) as aside:
        aside.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    plot_overlays(_panels(cases, shown, results), names, folder.overlays)
    print("\n".join([*table(summary), f"written to {folder.root}"]))
    return summary


def evaluate_again(
    folder: RunFolder,
    *,
    data: str | None = None,
    device: str = "auto",
    mirror: bool = False,
    largest_component: Sequence[str] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluate a run that is there, as ``evaluate`` does after a training, or with more done to its predictions.

    Args:
        folder: of the run.
        data: the data folder, if it has moved since.
        device: "auto", "cpu", "cuda" or "cuda:<n>".
        mirror: as in ``PredictOptions``.
        largest_component: as there.
        overwrite: replace the results that the run has.

    Raises:
        InputError: a test patient or label is missing, no label has foreground, the data have other classes than the
            run, results are there, or another process uses the run. Nothing has been written then.
    """
    config = load_config(folder.config)
    cache = config.cache if config.cache and Path(config.cache).is_dir() else ""  # or it is another machine's
    config = dataclasses.replace(config, data=data or config.data, cache=cache)
    if not Path(config.data).is_dir():
        raise InputError(f"the run's data folder {config.data} does not exist: if it has moved, give --data")
    chosen = choose_device(device)
    check_writable(folder.root, "RUN")
    with folder.owned():
        dataset = open_dataset(Path(config.data), config.format)
        ensemble = load_ensemble([folder.root], chosen)
        ensemble = ensemble.post_processed(mirror=mirror, largest_component=largest_component)
        class_names = ensemble.class_names
        if tuple(dataset.class_names) != class_names:
            raise InputError(
                f"{config.data} has the classes {', '.join(dataset.class_names)}, but the run was trained on "
                f"{', '.join(class_names)}: give its own data with --data"
            )
        cases = _test_cases(dataset, load_split(folder.split).test)
        targets = [*(_target(folder, case.name) for case in cases), folder.summary, folder.overlays, folder.report]
        inputs = [folder.best, folder.config, folder.split, folder.fingerprint]
        inputs += [path for case in cases for path in case.files]
        check_targets(targets, inputs, overwrite=overwrite)
        with findings.printed():
            prepared = open_cache(config)
            load = prepared.load if prepared else load_case
            loaded = load_cases(cases, len(class_names), config.input, ensemble.fingerprint, progress=True, load=load)
        facts = [findings.of_case(case, len(class_names)) for case in loaded]
        raise_problems(findings.no_foreground(facts, "test"), config.data)
        folder.remove_partials()
        summary = _evaluate(ensemble, folder, loaded)
        write_report(folder, config.data)
        return summary


def _test_cases(dataset: Dataset, patients: Sequence[str]) -> list[Case]:
    if not patients:
        raise InputError("no patient tests this run, so nothing can be evaluated: train with a larger share of test")
    cases = [case for case in dataset.cases if case.patient in patients]
    problems = []
    if absent := [patient for patient in patients if patient not in {case.patient for case in cases}]:
        problems.append(f"no {', '.join(absent)}")
    if unlabeled := [case.name for case in cases if case.label is None]:
        problems.append(f"no label of {', '.join(unlabeled)}")
    if problems:
        raise InputError(
            f"{dataset.root} lacks test patients of the run, {' and '.join(problems)}: give their folder with --data"
        )
    return cases


def _target(folder: RunFolder, case: str) -> Path:
    return folder.predictions / f"{case}.nii.gz"


def _panels(
    cases: Sequence[LoadedCase], shown: dict[str, Shown], results: dict[str, dict[int, ClassValues]]
) -> list[tuple[str, np.ndarray, dict[str, np.ndarray]]]:
    """Image, truth and prediction of the best, the median and the worst case, in the slice with most foreground.

    Cases in which every class is empty have no place in that order; only where all cases are such they are shown.
    """
    dice = {name: mean_dice(classes) for name, classes in results.items()}
    by_dice = sorted(cases, key=lambda case: -(dice[case.name] or 0.0))
    by_dice = [case for case in by_dice if dice[case.name] is not None] or by_dice
    ranks = {len(by_dice) // 2: "median", len(by_dice) - 1: "worst", 0: "best"}  # a case has the last of its ranks
    panels = []
    for place, rank in sorted(ranks.items()):
        case = by_dice[place]
        z, truth, prediction = shown[case.name]
        title = f"{rank}: {case.name}, slice {z + 1}, Dice {_text(dice[case.name], 3)}"
        panels.append((title, native_slice(case, z), {"truth": truth, "prediction": prediction}))
    return panels


def _text(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def table(summary: dict[str, Any], *, spread: bool = False) -> list[str]:
    """The lines of a summary's table: a class in each, and their mean; with ``spread`` also standard deviations."""
    heads = {name: f"{m.title} {summary['unit']}" if m.distance else m.title for name, m in MEASURES.items()}
    widths = {name: len(head) + 3 + (9 if spread else 0) for name, head in heads.items()}
    titles = "".join(f"{head:>{widths[name]}}" for name, head in heads.items())
    lines = [f"{'class':<16}{titles}{'misses':>8}{'empty':>7}"]
    for name, values in [*summary["classes"].items(), ("mean", summary["mean"])]:
        cells = []
        for key, m in MEASURES.items():
            text = _text(values[key], m.digits)
            if spread and values[key] is not None:
                text += f" ± {_text(values[f'{key}_std'], m.digits)}"
            cells.append(f"{text:>{widths[key]}}")
        lines.append(f"{name:<16}{''.join(cells)}{values['misses']:>8}{values['empty']:>7}")
    return lines


def main(arguments: list[str]) -> None:
    """The command line of ``python -m action.evaluate``."""
    parser = command_parser("evaluate")
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument("--data", type=str | None, default=None, help="data folder, if it has moved since the training")
    add_processing(parser)
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:<number>")
    parser.add_argument("--overwrite", action="store_true", help="replace the results that the run has")
    parsed = parser.parse_args(arguments)
    evaluate_again(
        RunFolder(parsed.run),
        data=parsed.data,
        device=parsed.device,
        mirror=parsed.mirror,
        largest_component=parsed.largest_component,
        overwrite=parsed.overwrite,
    )


if __name__ == "__main__":
    run(main)
