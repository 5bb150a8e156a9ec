# PYTHON_ARGCOMPLETE_OK
"""Show a run as one page, ``report.html``, that opens from disk without a network: ``python -m action.report RUN``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from action.cli import command_parser, load_config, run
from action.config import RunConfig
from action.data.dataset import open_dataset
from action.data.split import load_split
from action.environment import read_starts
from action.errors import InputError
from action.figures import is_loss, read_columns, smoothed
from action.files import check_targets, check_writable
from action.log import flat
from action.metrics import MEASURES
from action.pages.charts import Chart, Line, chart
from action.pages.chosen import Chosen, chosen_network
from action.pages.embedding import embeddings
from action.pages.page import number, write_page
from action.pages.scatter import Scatter
from action.pages.summary import case_mean, heads, read_summary
from action.pages.worst import worst_tested, worst_validated
from action.palette import CLASSES, STYLES
from action.run_folder import RunFolder


def write_report(folder: RunFolder, data: str | None = None) -> Path:
    """Write a run's page from the files in its folder, and the data set's for the slices of the worst cases.

    Args:
        folder: of a run that has been trained; where it was not evaluated, the page says so.
        data: the data folder, if it has moved since. Without the data the page has no slices, and says why.

    Returns:
        The page.

    Raises:
        InputError: the folder is not a run's, its files cannot be read, or the page would replace another file.
    """
    config = load_config(folder.config)
    if not folder.metrics.is_file():
        raise InputError(f"{folder.metrics} does not exist: train the run first")
    summary = read_summary(folder.summary) if folder.summary.is_file() else None
    check_targets([folder.report], [path for path in folder.files if path != folder.report], overwrite=True)
    split = load_split(folder.split)
    steps, stages, columns = read_columns(folder.metrics)
    begins = [i for i in range(len(stages)) if i == 0 or stages[i] != stages[i - 1]]
    names = list(summary["classes"]) if summary else []
    viewer: dict[str, Any] = {"cases": []}
    chosen, unseen = None, ""
    try:
        chosen = chosen_network(folder, steps, columns, begins)
    except InputError as error:
        print(f"warning: {folder.report} does not say which network predicts: {error}")
    try:
        if summary:
            viewer = _viewer(list(worst_tested(folder, config, summary, data or config.data)), ["background", *names])
        elif not split.test and chosen:
            viewer = _viewer(*worst_validated(folder, config, split.validation, data or config.data))
    except (InputError, OSError) as error:
        unseen = f"There are no slices here: {error}."
        print(f"warning: {folder.report} shows no slices: {error}")
    drawings: list[Scatter] = []
    if not unseen and Path(data or config.data).is_dir():
        try:
            drawings = embeddings(folder, config, open_dataset(Path(data or config.data), config.format))
        except InputError as error:
            print(f"warning: {folder.report} shows no features: {error}")
    write_page(
        "report.html",
        folder.report,
        title=folder.root.resolve().name,
        subtitle=f"{config.method}, trained on {Path(config.data).name}",
        facts=_facts(config, split.labeled, split.unlabeled, steps, columns, summary, chosen),
        chosen=chosen,
        stages=" ".join(f"{n}: {str(stages[i]).replace('_', ' ')}." for n, i in enumerate(begins, 1)),
        charts=list(_charts(steps, stages, columns, [int(steps[i]) for i in begins])),
        summary=summary,
        without="" if summary else _without(split.test),
        measures=heads(summary["unit"]) if summary else [],
        classes=[*summary["classes"].items(), ("mean", summary["mean"])] if summary else [],
        class_names=names,
        rows=list(_rows(summary)) if summary else [],
        viewer=viewer,
        unseen=unseen,
        embeddings=drawings,
        confusion=_confusion(summary) if summary else None,
        starts=[_start(start) for start in read_starts(folder.environment)],
        patients=[(name, ", ".join(members) or "none") for name, members in dataclasses.asdict(split).items()],
        settings=[(name, _text(value)) for name, value in flat(dataclasses.asdict(config))],
    )
    return folder.report


def _facts(
    config: RunConfig,
    labeled: Sequence[str],
    unlabeled: Sequence[str],
    steps: np.ndarray,
    columns: Mapping[str, np.ndarray],
    summary: dict[str, Any] | None,
    chosen: Chosen | None,
) -> list[tuple[str, str]]:
    unfinished = f" of {config.updates}, unfinished" if len(steps) < (config.updates or 0) else ""
    facts = [
        ("labelled patients", str(len(labeled))),
        ("unlabelled patients", str(len(unlabeled))),
        ("seed", str(config.seed)),
        ("updates", f"{len(steps)}{unfinished}"),
    ]
    validated = columns.get("val_dice", np.empty(0))
    validated = validated[np.isfinite(validated)]
    if len(validated):
        facts.insert(0, ("last Dice on the validation patients", number(float(validated[-1]))))
    if chosen:
        name = f"Dice on the validation patients at update {chosen.step}, whose network predicts"
        facts.insert(0, (name, number(chosen.dice)))
    if summary:
        facts.insert(0, ("mean Dice on the test patients", number(summary["mean"]["dice"])))
        facts.append(("test cases", str(len(summary["cases"]))))
    return facts


def _without(test: Sequence[str]) -> str:
    """Why there are no results."""
    if not test:
        return "No patient tests this run, so that there is no summary.json."
    return "The run has no summary.json: python -m action.evaluate writes it."


def _charts(
    steps: np.ndarray, stages: np.ndarray, columns: Mapping[str, np.ndarray], begins: Sequence[int]
) -> Iterator[Chart]:
    last = int(steps[-1]) if len(steps) else 1

    def line(name: str, column: str, style: str, smooth: bool = False) -> Line:
        there = np.isfinite(columns[column])
        values = columns[column][there]
        return Line(name, style, steps[there], smoothed(values, stages[there]) if smooth else values)

    losses = [name for name in columns if is_loss(name)]
    yield chart(
        "Losses, without their weights, smoothed",
        [line("loss, their weighted sum" if n == "loss" else n, n, _style(i), True) for i, n in enumerate(losses)],
        begins,
        last,
        log=True,
    )
    dice = {
        "val_dice": "Dice on the validation patients",
        "val_teacher_dice": "Dice of the teacher, who gives the pseudo-labels, on the validation patients",
    }
    for prefix, title in dice.items():
        if prefix in columns:
            classes = [name for name in columns if name.startswith(f"{prefix}_")]
            lines = [line(name.removeprefix(f"{prefix}_"), name, _style(i)) for i, name in enumerate(classes)]
            yield chart(title, [*lines, line("mean", prefix, "mean")], begins, last)
    if "confident" in columns:
        yield chart("Share of confident pixels", [line("confident pixels", "confident", _style(0), True)], begins, last)


def _style(index: int) -> str:
    return f"s{index % STYLES}"


def _viewer(cases: Sequence[dict[str, Any]], class_names: Sequence[str]) -> dict[str, Any]:
    colors = [CLASSES[index % len(CLASSES)] for index in range(len(class_names) - 1)]
    return {"cases": list(cases), "classes": list(class_names), "colors": colors}


def _rows(summary: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Of every case a row for the mean of its classes and one for each."""
    for case, by_class in summary["cases"].items():
        means = {name: case_mean(by_class, name) for name in MEASURES}
        missed = [name for name, values in by_class.items() if values["miss"]]
        note = f"misses {', '.join(missed)}" if missed else ""
        yield {"case": case, "class_name": "mean", "found": means, "note": note}
        for name, values in by_class.items():
            note = "miss" if values["miss"] else "empty" if values["empty"] else ""
            yield {"case": case, "class_name": name, "found": values, "note": note}


def _confusion(summary: dict[str, Any]) -> dict[str, Any] | None:
    """Shares of each row; ``None`` in a summary that has no counts."""
    if not (counts := summary.get("confusion")):
        return None
    rows = []
    for name, row in counts.items():
        total = sum(row.values())
        rows.append({"name": name, "shares": [n / total if total else None for n in row.values()], "voxels": total})
    return {"names": list(counts), "rows": rows}


def _start(start: dict[str, Any]) -> dict[str, Any]:
    rows = {key: value for key, value in start.items() if key not in ("versions", "time", "step")}
    rows |= {f"version of {name}": value for name, value in start.get("versions", {}).items()}
    begun = "Started" if not start.get("step") else f"Resumed after update {start['step']}"
    return {"title": f"{begun} {start.get('time', '')}", "rows": list(rows.items())}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def main(arguments: list[str]) -> None:
    """The command line of ``python -m action.report``."""
    parser = command_parser("report")
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument("--data", type=str | None, default=None, help="data folder, if it has moved since the training")
    parsed = parser.parse_args(arguments)
    folder = RunFolder(parsed.run)
    load_config(folder.config)  # or there is no run, and no folder to be made
    check_writable(folder.root, "RUN")
    with folder.owned():
        print(f"written to {write_report(folder, parsed.data)}")


if __name__ == "__main__":
    run(main)
