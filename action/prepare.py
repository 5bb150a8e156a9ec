# PYTHON_ARGCOMPLETE_OK
"""Prepare data, ``python -m action.prepare``: check a data set, convert it to another layout, or write the phantom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from action.choices import FormatName, WriterName
from action.cli import Parser, command_parser, run
from action.commands import example, program
from action.data import Case, Dataset, findings, open_dataset
from action.data.cases import raise_problems
from action.data.conversion import convert
from action.data.dataset import AUTO
from action.data.fingerprint import Measures, join_channels, measure, unlike
from action.data.phantom import write_phantom
from action.data.reading import read_channels, read_label
from action.errors import InputError
from action.progress import track


def check(dataset: Dataset) -> str:
    """Read every file of a data set.

    Returns:
        A table: of each case the voxels, their size, the range of intensities and the share of each class; below it the
        totals, and notes on what is readable but odd (``docs/reference/checks.md`` lists them).

    Raises:
        InputError: all problems of all files, after the table of the sound ones has been printed.
    """
    names = dataset.class_names
    rows: list[list[str]] = []
    facts: list[findings.Facts] = []
    measures: list[list[Measures]] = []
    sized: dict[str, bool] = {}
    problems: list[str] = []
    warned: list[str] = []
    total = np.zeros(len(names), np.int64)
    with findings.collected(warned):
        for case in track(dataset.cases, "checking", "volume", leave=False):
            try:
                row, fact, measured, sized[case.name] = _check_case(case, len(names))
            except InputError as error:
                problems.append(str(error))
                continue
            facts.append(fact)
            measures.append(measured)
            rows.append(row)
            total += 0 if fact.voxels is None else fact.voxels
    problems += findings.no_foreground(facts, "labelled")
    notes = [
        *findings.notes_on_labels(facts, names),
        *findings.notes_on_learning(facts, names),
        *findings.notes_on_copies(facts),
        *findings.notes_on_sizes(sized),
        *_notes_on_looks(measures),
        *warned,
    ]

    learned = len({case.patient for case in dataset.cases if case.label is not None})
    if learned < 2:
        who = "one patient has" if learned else "no patient has"
        notes.append(f"{who} labels: training needs two, one to learn from and one for validation")

    head = ["case", "voxels x y z", "size mm x y z", "intensities", *(f"{name} %" for name in names)]
    unlabeled = sum(case.label is None for case in dataset.cases)
    lines = [
        *_columns([head, *rows]),
        f"{len(dataset.cases)} cases of {len(dataset.patients)} patients; {unlabeled} of the cases without a label",
        "all labelled voxels: " + ", ".join(f"{n} {s}" for n, s in zip(names, _shares(total), strict=True)),
        *(f"note: {note}" for note in findings.merged(notes)),
    ]
    table = "\n".join(lines)
    if problems:
        print(table)
    raise_problems(problems, str(dataset.root))
    return table


def _check_case(case: Case, classes: int) -> tuple[list[str], findings.Facts, list[Measures], bool]:
    """A row of the table, what is compared with other cases, and whether the file has a voxel size."""
    image, *others = read_channels(case)
    label = read_label(case, image, classes)
    channels = [image.array, *(channel.array for channel in others)]
    fact = findings.facts_of(case.name, case.patient, channels, label, classes)
    row = [
        case.name,
        " ".join(str(n) for n in image.array.shape[::-1]),
        " ".join(f"{size:.3g}" for size in image.spacing[::-1]),
        ", ".join(f"{channel.min():g} to {channel.max():g}" for channel in channels),
    ]
    row += ["no label"] if fact.voxels is None else _shares(fact.voxels)
    return row, fact, [measure(channel) for channel in (image, *others)], image.sized


def _notes_on_looks(measures: Sequence[Sequence[Measures]]) -> list[str]:
    """Sentences about volumes that differ from the others."""
    if not measures:
        return []
    fingerprint = join_channels(measures, "auto")
    return [note for measured in measures for note in unlike(measured, fingerprint)]


def _shares(voxels: np.ndarray) -> list[str]:
    return [f"{100 * count / max(voxels.sum(), 1):.2f}" for count in voxels]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]


def main(arguments: list[str]) -> None:
    """The command line of ``python -m action.prepare``."""
    phantom = Parser(
        description="Write the phantom data set, as NIfTI files in the ACDC layout.",
        epilog=f"example:\n  {program('prepare')} phantom data/phantom --patients 24",
    )
    phantom.add_argument("folder", type=str, help="folder to write; left as it is if it holds this phantom already")
    phantom.add_argument("--patients", type=int, default=24, help="number of patients")
    phantom.add_argument("--seed", type=int, default=0, help="seed of everything that is drawn")
    checking = Parser(
        description="Verify a data set: every problem, and a table of its cases.",
        epilog=f"example:\n  {example('prepare')}",
    )
    checking.add_argument("folder", type=str, help="folder of the data set")
    checking.add_argument("--format", type=FormatName, default="auto", help="layout of the files; auto recognises it")

    converting = Parser(
        description="Write a data set in another layout; nothing of it is changed, and nothing is ever overwritten.",
        epilog=f"example:\n  {program('prepare')} convert ACDC hearts --to nnunet",
    )
    converting.add_argument("source", type=str, help="folder of the data set")
    converting.add_argument("target", type=str, help="folder to write")
    converting.add_argument(
        "--format", type=FormatName, default="auto", help="layout of the source; auto recognises it"
    )
    converting.add_argument("--to", type=WriterName, required=True, help="layout of the target")

    parser = command_parser("prepare")
    commands = parser.add_subcommands(required=True, dest="command")
    commands.add_subcommand("phantom", phantom, help="write the synthetic heart")
    commands.add_subcommand("check", checking, help="verify a data set")
    commands.add_subcommand("convert", converting, help="write a data set in another layout")
    parsed = parser.parse_args(arguments)
    chosen = parsed[parsed.command]
    if parsed.command == "phantom":
        root = write_phantom(Path(chosen.folder), chosen.patients, chosen.seed)
        print(f"{chosen.patients} phantom patients in {root}: python -m action.train --data {root}")
    elif parsed.command == "convert":
        dataset = _opened(chosen.source, chosen.format)
        with findings.printed():
            notes = convert(dataset, Path(chosen.target), chosen.to)
        findings.say(notes)
        print(f"{len(dataset.cases)} cases in {chosen.target}")
    else:
        print(check(_opened(chosen.folder, chosen.format)))


def _opened(folder: str, format: str) -> Dataset:
    dataset = open_dataset(folder, format)
    if format == AUTO:
        print(f"{folder}: taken for the format {dataset.format}")
    return dataset


if __name__ == "__main__":
    run(main)
