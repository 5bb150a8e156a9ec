# PYTHON_ARGCOMPLETE_OK
"""Train once for every fold and validate on all patients: ``python -m action.crossval --folds 5 --data DIR``."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from action.cli import choose_device, config_parser, run, to_config
from action.commands import program
from action.config import RunConfig, TrainConfig
from action.data import findings
from action.data.cases import Case, Sets
from action.data.dataset import open_dataset
from action.data.folds import Fold, make_folds, save_fold
from action.data.split import load_split, make_split, read_labeled, read_sets
from action.data.volumes import load_case, unit_of
from action.ensemble import load_ensemble
from action.errors import InputError
from action.evaluate import table
from action.experiment import check_output, check_split, choose_output, open_split, resolve
from action.files import check_targets, write_aside
from action.metrics import MEASURES, ClassValues, case_metrics, mean_std, summarize
from action.progress import track
from action.run_folder import RunFolder
from action.train import train

FOLDS = 5
"""Where neither the command nor the data set says how many."""


def cross_validate(
    config: TrainConfig, folds: int | None = None, *, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Train a run for each fold, and measure on the validation patients of each what it makes of them.

    Test patients are those that a single run has; they test every fold. The others with labels are dealt to the folds,
    unless nnU-Net's ``splits_final.json`` has done that. Writes ``fold<i>/``, ``fold<i>.json`` (its split) and
    ``crossval.json`` into ``config.output``.

    Args:
        config: settings of every run; ``output`` is the folder that holds them.
        folds: how many; ``None``: those of the data set, or ``FOLDS``.
        resume: continue; runs that are not begun are begun.
        overwrite: replace the runs.

    Returns:
        What ``crossval.json`` holds, see ``summary_of``.

    Raises:
        InputError: see the message; nothing has been trained then.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("crossval runs in one process: start it without torchrun, or train the folds one by one")
    output = Path(config.output).expanduser() if config.output else Path(f"{choose_output(config)}-folds")
    if RunFolder(output).config.is_file():
        raise InputError(f"{output} is the folder of a run: choose another --output, for one of every fold")
    config = dataclasses.replace(config, output=str(output))
    check_output(config)
    settings = resolve(config)
    output = Path(settings.output)
    device = choose_device(settings.device)
    runs, files = _plan(settings, folds)
    resumed = [resume and RunFolder(run.output).config.is_file() for run in runs]
    for run_, again in zip(runs, resumed, strict=True):
        RunFolder(run_.output).check_free(resume=again, overwrite=overwrite)
    result = output / "crossval.json"
    inputs = [Path(settings.split.file)] if settings.split.file else []
    check_targets([*files, result], inputs, overwrite=resume or overwrite)
    output.mkdir(parents=True, exist_ok=True)
    for path, fold in files.items():
        save_fold(fold.lists, path)
    for index, (run_, again) in enumerate(zip(runs, resumed, strict=True)):
        print(f"fold {index} of {len(runs)}")
        train(run_, resume=again, overwrite=overwrite)
    summary = summary_of([RunFolder(run_.output) for run_ in runs], device)
    with write_aside(result) as aside:
        aside.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print("\n".join([*tables(summary), f"written to {result}", "predict with all of them:", _command(runs)]))
    return summary


def _plan(settings: RunConfig, folds: int | None) -> tuple[list[RunConfig], dict[Path, Fold]]:
    """The settings of every fold's run, and what is to be written into the split files that they name.

    Raises:
        InputError: a number of folds that the data do not allow, or a fold that could not be trained.
    """
    output = Path(settings.output)
    dataset, base = open_split(settings)
    file = Path(settings.split.file) if settings.split.file else dataset.split_file
    outputs = [str(output / f"fold{index}") for index in range(folds or FOLDS)]
    if file is None and (known := dataset.count_folds()):
        if folds not in (None, known):
            raise InputError(f"folds is {folds}, but {dataset.root} prescribes {known}: leave it out")
        outputs = [str(output / f"fold{index}") for index in range(known)]
        runs = [
            dataclasses.replace(settings, output=place, split=dataclasses.replace(settings.split, fold=index))
            for index, place in enumerate(outputs)
        ]
        for run_ in runs:
            open_split(run_)
        return runs, {}
    sets = read_sets(file, dataset.patients) if file else None
    planned = make_folds(
        dataset.cases,
        len(outputs),
        order=dataset.patients if sets is None else [name for names in sets[:3] for name in names or ()],
        test=base.test,
        shuffle_seed=settings.split.shuffle_seed,
        always=settings.labeled_patients,
        labeled=read_labeled(file) if file else None,
    )
    runs = []
    files: dict[Path, Fold] = {}
    for index, (place, fold) in enumerate(zip(outputs, planned, strict=True)):
        _check(fold, dataset.cases, index, settings)
        path = output / f"fold{index}.json"
        files[path] = fold
        split = dataclasses.replace(settings.split, file=str(path), fold=0)
        runs.append(dataclasses.replace(settings, output=place, split=split))
    return runs, files


def _check(fold: Fold, cases: Sequence[Case], index: int, settings: RunConfig) -> None:
    """Refuse a fold that could not be trained, before the first one is.

    Raises:
        InputError: too few labelled patients, or no other ones where the method needs them.
    """
    labeled: int | Sequence[str] = settings.labeled_patients or settings.labeled
    if fold.labeled is not None and isinstance(labeled, int):
        if len(fold.labeled) < labeled:
            raise InputError(
                f"{labeled} labelled patients asked for, but fold {index} trains on {len(fold.labeled)} of those whom "
                "'labeled' of the split file names: ask for fewer, or name more"
            )
        labeled = fold.labeled[:labeled]
    split = make_split(
        cases,
        labeled=labeled,
        seed=settings.seed,
        order=settings.split.labeled_order,
        prescribed=Sets(fold.train, fold.validation, fold.test, f"fold {index}"),
    )
    check_split(settings, split)


def summary_of(folders: Sequence[RunFolder], device: torch.device) -> dict[str, Any]:
    """Measure the validation patients of every run with its best network.

    Returns:
        ``folds``: of each its ``run``, the ``validation`` summary (see ``metrics.summarize``), and ``test``, the run's
            own summary, ``None`` where nobody tests.
        ``validation``: ``over_folds`` has means and deviations of the folds' means, ``over_cases`` is the summary of
            all validation cases together.
        ``test``: ``over_folds`` likewise, or ``None``.
    """
    folds: list[dict[str, Any]] = []
    every: dict[str, dict[int, ClassValues]] = {}
    for index, folder in enumerate(folders):
        results, names, unit = _measure(folder, device)
        test = json.loads(folder.summary.read_text(encoding="utf-8")) if folder.summary.is_file() else None
        folds.append({"run": str(folder.root), "validation": summarize(results, names, unit), "test": test})
        every |= {f"fold{index}/{case}": values for case, values in results.items()}
    pooled = summarize(every, names, unit)
    validation = {"over_folds": over_folds([fold["validation"] for fold in folds]), "over_cases": pooled}
    tests = [fold["test"] for fold in folds if fold["test"] is not None]
    test = {"over_folds": over_folds(tests)} if len(tests) == len(folds) else None
    return {"folds": folds, "validation": validation, "test": test}


def _measure(folder: RunFolder, device: torch.device) -> tuple[dict[str, dict[int, ClassValues]], tuple[str, ...], str]:
    """Measures of a run's validation cases, the names of the classes, and the unit of the distances."""
    ensemble = load_ensemble([folder.root], device)
    config, names = ensemble.config, ensemble.class_names
    patients = set(load_split(folder.split).validation)
    cases = [case for case in open_dataset(config.data, config.format).cases if case.patient in patients]
    results: dict[str, dict[int, ClassValues]] = {}
    unit = "voxels"
    for case in track(cases, f"validation of {folder.root.name}", "volume"):
        with findings.collected([]):  # the training has said what is odd
            loaded = load_case(case, len(names), config.input, ensemble.fingerprint)
        prediction = ensemble.segmenter.segment(loaded)
        results[case.name] = case_metrics(prediction, loaded.required_truth, len(names), loaded.spacing)
        unit = "mm" if unit_of([loaded]) == "mm" else unit
    return results, names, unit


def over_folds(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over folds and, as ``<measure>_std``, deviations of what ``metrics.summarize`` says of each fold.

    Returns:
        ``unit``, ``classes`` and ``mean`` as there; a fold in which a measure does not exist is left out of it.
    """

    def row(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
        values: dict[str, float | None] = {}
        for name in MEASURES:
            values[name], values[f"{name}_std"] = mean_std([found[name] for found in rows])
        for count in ("misses", "empty"):
            values[count] = sum(found[count] for found in rows)
        return values

    classes = {name: row([s["classes"][name] for s in summaries]) for name in summaries[0]["classes"]}
    return {"unit": summaries[0]["unit"], "classes": classes, "mean": row([s["mean"] for s in summaries])}


def tables(summary: dict[str, Any]) -> list[str]:
    """The lines of what is printed in the end."""
    folds, pooled = len(summary["folds"]), summary["validation"]["over_cases"]
    lines = [
        f"validation: mean over {folds} folds ± deviation",
        *table(summary["validation"]["over_folds"], spread=True),
    ]
    lines += [f"validation: mean over all {len(pooled['cases'])} cases ± deviation", *table(pooled, spread=True)]
    if summary["test"] is not None:
        lines += [f"test: mean over {folds} folds ± deviation", *table(summary["test"]["over_folds"], spread=True)]
    return lines


def _command(runs: Sequence[RunConfig]) -> str:
    first, *others = (shlex.quote(_short(run_.output)) for run_ in runs)
    return f"  {program('predict')} {first} IMAGES -o DIR --ensemble {' '.join(others)}"


def _short(path: str) -> str:
    """As it may be typed: relative to the working directory where it lies below."""
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path


def main(arguments: list[str]) -> None:
    """The command line of ``python -m action.crossval``."""
    parser = config_parser("crossval")
    parser.add_argument(
        "--folds", type=int, default=None, help=f"number of folds; without it those of the data set, or {FOLDS}"
    )
    parser.add_argument("--resume", action="store_true", help="continue interrupted runs in --output, begin others")
    parser.add_argument("--overwrite", action="store_true", help="replace the runs in --output")
    parsed = parser.parse_args(arguments)
    cross_validate(to_config(parser, parsed), parsed.folds, resume=parsed.resume, overwrite=parsed.overwrite)


if __name__ == "__main__":
    run(main)
