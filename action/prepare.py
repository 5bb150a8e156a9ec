"""Prepare data: ``python -m action.prepare phantom DIR`` writes the phantom, ``... check DIR`` verifies a data set."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from action.cli import Parser, run
from action.data import FORMATS, Case, Dataset, open_dataset
from action.data.cases import raise_problems
from action.data.nifti import read_image, read_label
from action.data.phantom import write_phantom
from action.errors import InputError


def check(dataset: Dataset) -> str:
    """Reads every file of a data set.

    Returns:
        A table: of each case the voxels, their size, the range of intensities and the share of each class; below it the
        totals, and notes on files that were read but look odd.

    Raises:
        InputError: all problems of all files, after the table of the sound ones has been printed.
    """
    names = dataset.class_names
    rows, problems, notes = [], [], []
    total = np.zeros(len(names), np.int64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for case in tqdm(dataset.cases, desc="checking", unit="volume", leave=False):
            try:
                row, voxels = _check_case(case, len(names))
            except InputError as error:
                problems.append(str(error))
                continue
            rows.append(row)
            if voxels is not None:
                total += voxels
                absent = [name for name, count in zip(names, voxels, strict=True) if count == 0]
                notes += [f"{case.name} has no voxel of {', '.join(absent)}"] if absent else []
    notes += [str(warning.message) for warning in caught]

    head = ["case", "voxels x y z", "size mm x y z", "intensities", *(f"{name} %" for name in names)]
    unlabeled = {case.patient for case in dataset.cases if case.label is None}
    lines = [
        *_columns([head, *rows]),
        f"{len(dataset.cases)} cases of {len(dataset.patients)} patients, {len(unlabeled)} of them without labels",
        "all labelled voxels: " + ", ".join(f"{n} {s}" for n, s in zip(names, _shares(total), strict=True)),
        *(f"note: {note}" for note in notes),
    ]
    table = "\n".join(lines)
    if problems:
        print(table)
    raise_problems(problems, str(dataset.root))
    return table


def _check_case(case: Case, classes: int) -> tuple[list[str], np.ndarray | None]:
    """A row of the table, and the number of voxels of each class."""
    image = read_image(case.image)
    low, high = image.array.min(), image.array.max()
    if low == high:
        raise InputError(f"{case.image}: every voxel is {low:g}, there is no image in it")
    row = [
        case.name,
        " ".join(str(n) for n in image.array.shape[::-1]),
        " ".join(f"{size:.3g}" for size in image.spacing[::-1]),
        f"{low:g} to {high:g}",
    ]
    if case.label is None:
        return [*row, "no label"], None
    voxels = np.bincount(read_label(case.label, image, classes).array.ravel(), minlength=classes)
    return [*row, *_shares(voxels)], voxels


def _shares(voxels: np.ndarray) -> list[str]:
    return [f"{100 * count / max(voxels.sum(), 1):.2f}" for count in voxels]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]


def main(arguments: list[str]) -> None:
    phantom = Parser(description="Write the phantom data set, as NIfTI files in the ACDC layout.")
    phantom.add_argument("folder", type=str, help="folder to write; left as it is if it holds this phantom already")
    phantom.add_argument("--patients", type=int, default=24, help="number of patients")
    phantom.add_argument("--seed", type=int, default=0, help="seed of everything that is drawn")
    checking = Parser(description="Verify a data set: every problem, and a table of its cases.")
    checking.add_argument("folder", type=str, help="folder of the data set")
    checking.add_argument("--format", type=str, default="acdc", help=f"layout of the files: {', '.join(FORMATS)}")

    parser = Parser(prog="python -m action.prepare", description=__doc__)
    commands = parser.add_subcommands(required=True, dest="command")
    commands.add_subcommand("phantom", phantom)
    commands.add_subcommand("check", checking)
    parsed = parser.parse_args(arguments)
    chosen = parsed[parsed.command]
    if parsed.command == "phantom":
        root = write_phantom(Path(chosen.folder), chosen.patients, chosen.seed)
        print(f"{chosen.patients} phantom patients in {root}: python -m action.train --data {root}")
    else:
        print(check(open_dataset(chosen.folder, chosen.format)))


if __name__ == "__main__":
    run(main)
