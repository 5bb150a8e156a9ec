# PYTHON_ARGCOMPLETE_OK
"""Compare runs that were tested on the same cases: ``python -m action.compare RUN RUN ...``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from action.cli import command_parser, run
from action.errors import InputError
from action.files import check_targets, check_writable
from action.intervals import RESAMPLES, Interval, Resamples
from action.metrics import MEASURES, mean_std
from action.pages.page import number, write_page
from action.pages.summary import Head, heads, read_summary
from action.run_folder import RunFolder
from action.seeds import Entry, entries


class Row(NamedTuple):
    """Results in one class, of a run or of several that differ in their seed.

    Attributes:
        class_name: or "mean" of the classes.
        run: name of the entry.
        value: its own mean.
        spread: standard deviation of the runs' means over the seeds; ``None`` for one run.
        difference: from the first entry, over the cases in which both have a value; ``None`` for the first itself.
    """

    class_name: str
    run: str
    value: Interval
    spread: float | None
    difference: Interval | None


class Member(NamedTuple):
    """One of several runs that differ in their seed.

    Attributes:
        run: its name.
        entry: name of what it is a part of.
        seed: its own.
        root: its folder.
        means: over its cases and classes, of every measure.
    """

    run: str
    entry: str
    seed: int
    root: Path
    means: dict[str, float | None]


class Comparison(NamedTuple):
    """Runs beside each other.

    Attributes:
        names: of what is compared, the one first that the others are compared with.
        members: the runs of those that have several.
        cases, patients: how many there are.
        tables: rows of every measure.
    """

    names: list[str]
    members: list[Member]
    cases: int
    patients: int
    tables: list[tuple[Head, list[Row]]]


def compare(roots: Sequence[Path]) -> Comparison:
    """Read the summaries of runs and compare all with the first; those that differ in their seed count as one.

    A case's value is then its mean over the seeds, so that cases, and not seeds, are what an interval is made of.

    Args:
        roots: folders of the runs, two at least.

    Raises:
        InputError: fewer than two, one named twice, one without a summary, or runs of other cases, classes or units.
    """
    if len(roots) < 2:
        raise InputError(f"{roots[0]} alone cannot be compared: give two runs or more")
    resolved = [root.resolve() for root in roots]
    for index, root in enumerate(resolved):
        if root in resolved[:index]:
            raise InputError(f"{roots[index]} is named twice: name each run once")
    summaries = [_summary(root) for root in roots]
    first = summaries[0]
    for root, other in zip(roots[1:], summaries[1:], strict=True):
        _check_same(roots[0], first, root, other)
    short = [root.name for root in resolved]
    names = short if len(set(short)) == len(short) else [str(root) for root in roots]
    cases, classes = list(first["cases"]), list(first["classes"])
    patients = [first.get("patients", {}).get(case, case) for case in cases]
    resamples = Resamples(patients)
    compared = entries(roots, names, summaries)
    tables = []
    for head in heads(first["unit"]):
        values = [_values(summary, head.name, cases, classes) for summary in summaries]
        averaged = [_over_runs([values[place] for place in entry.places]) for entry in compared]
        spreads = [_spreads([summaries[place] for place in entry.places], head.name, classes) for entry in compared]
        tables.append((head, list(_rows(compared, [*classes, "mean"], averaged, spreads, resamples))))
    members = [
        Member(names[place], entry.name, seed, roots[place], {m: summaries[place]["mean"][m] for m in MEASURES})
        for entry in compared
        for place, seed in zip(entry.places, entry.seeds, strict=False)  # a run alone has none here
    ]
    return Comparison([entry.name for entry in compared], members, len(cases), len(set(patients)), tables)


def _summary(root: Path) -> dict[str, Any]:
    path = RunFolder(root).summary
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the folder of a run that has been evaluated")
    summary = read_summary(path)
    if not summary["cases"]:
        raise InputError(f"{path} has no cases: evaluate the run again, with --overwrite")
    return summary


def _check_same(ours: Path, first: dict[str, Any], theirs: Path, other: dict[str, Any]) -> None:
    pair = f"{ours} and {theirs} cannot be compared"
    for what in ("classes", "cases"):
        if set(first[what]) != set(other[what]):
            only = sorted(set(first[what]) ^ set(other[what]))
            more = f" and {len(only) - 3} more" if len(only) > 3 else ""
            raise InputError(
                f"{pair}: their {what} differ, only one has {', '.join(only[:3])}{more}; give runs of the same split"
            )
    if first["unit"] != other["unit"]:
        raise InputError(
            f"{pair}: distances are in {first['unit']} and in {other['unit']}; evaluate both on one data set"
        )


def _values(summary: dict[str, Any], measure: str, cases: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """[classes, cases], NaN where there is none."""
    found = [[summary["cases"][case][name][measure] for case in cases] for name in classes]
    return np.array(found, dtype=float)  # None becomes NaN


def _over_runs(values: Sequence[np.ndarray]) -> np.ndarray:
    """Of each class and case the mean over the runs in which it has a value."""
    stacked = np.stack(values)
    there = np.isfinite(stacked)
    count = there.sum(0)
    means = np.full(count.shape, np.nan)
    np.divide(np.where(there, stacked, 0).sum(0), count, out=means, where=count > 0)
    return means


def _spreads(summaries: Sequence[dict[str, Any]], measure: str, classes: Sequence[str]) -> list[float | None]:
    """Of each class and of their mean the deviation of the runs' means; ``None`` for one run."""
    if len(summaries) == 1:
        return [None] * (len(classes) + 1)
    of_classes = [mean_std([summary["classes"][name][measure] for summary in summaries])[1] for name in classes]
    return [*of_classes, mean_std([summary["mean"][measure] for summary in summaries])[1]]


def _rows(
    compared: Sequence[Entry],
    classes: Sequence[str],
    values: Sequence[np.ndarray],
    spreads: Sequence[Sequence[float | None]],
    resamples: Resamples,
) -> Iterator[Row]:
    means = [resamples.intervals(of_entry) for of_entry in values]
    differences = [resamples.intervals(of_entry - values[0]) for of_entry in values[1:]]
    for c, class_name in enumerate(classes):
        for e, entry in enumerate(compared):
            yield Row(class_name, entry.name, means[e][c], spreads[e][c], differences[e - 1][c] if e else None)


def interval_text(interval: Interval, digits: int, sign: bool = False, spread: float | None = None) -> str:
    """A mean, its deviation over seeds where there is one, and its interval in brackets; a dash where there is none."""
    mean, low, high = (number(value, digits, sign) for value in interval)
    deviation = "" if spread is None else f" ± {number(spread, digits)}"
    return mean if isnan(interval.mean) else f"{mean}{deviation} [{low}, {high}]"


def lines_of(comparison: Comparison) -> list[str]:
    """What is printed: a table of every measure."""
    wide = max(len(name) for name in comparison.names) + 2
    lines = [explanation(comparison)]
    for name, runs in _by_entry(comparison.members).items():
        lines.append(f"{name}: {', '.join(f'{run.run} (seed {run.seed})' for run in runs)}")
    for head, rows in comparison.tables:
        longest = max(len(row.class_name) for row in rows) + 2
        values = [interval_text(row.value, head.digits, spread=row.spread) for row in rows]
        widest = max(24, *(len(value) + 2 for value in values))
        difference = f"difference from {comparison.names[0]}" if len(comparison.names) > 1 else ""
        lines += ["", f"{head.head:<{longest}}{'run':<{wide}}{'mean':<{widest}}{difference}".rstrip()]
        for row, value in zip(rows, values, strict=True):
            difference = ""
            if row.difference is not None:
                difference = interval_text(row.difference, head.digits, sign=True)
                difference += " *" if row.difference.excludes_zero else ""
            lines.append(f"{row.class_name:<{longest}}{row.run:<{wide}}{value:<{widest}}{difference}".rstrip())
    return lines


def _by_entry(members: Sequence[Member]) -> dict[str, list[Member]]:
    found: dict[str, list[Member]] = {}
    for member in members:
        found.setdefault(member.entry, []).append(member)
    return found


def explanation(comparison: Comparison) -> str:
    """One sentence on the intervals, for the text and the page."""
    seeds = "; runs that differ in their seed alone count as one, each case by its mean, ± the deviation of their means"
    return (
        f"{comparison.cases} cases of {comparison.patients} patients; in brackets 95 % intervals of {RESAMPLES} "
        "resamples of the patients, the same for all runs; * 0 is not in the interval of the difference"
        f"{seeds if comparison.members else ''}"
    )


def _linked(members: Sequence[Member], folder: Path) -> list[tuple[Member, str]]:
    """Each run with the address of its page as seen from a folder, empty where it has none."""
    pages = [RunFolder(member.root).report.resolve() for member in members]
    return [
        (member, quote(os.path.relpath(page, folder.resolve())) if page.is_file() else "")
        for member, page in zip(members, pages, strict=True)
    ]


def main(arguments: list[str]) -> None:
    """The command line of ``python -m action.compare``."""
    parser = command_parser("compare")
    parser.add_argument("runs", type=str, nargs="+", metavar="RUN", help="folders of runs; the first is the reference")
    parser.add_argument("-o", "--output", type=str | None, default=None, help="HTML file to write the same to")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    parsed = parser.parse_args(arguments)
    roots = [Path(folder) for folder in parsed.runs]
    output = None if parsed.output is None else Path(parsed.output)
    if output is not None:
        if output.is_dir():
            raise InputError(f"--output is {output}, a folder: name the HTML file that is to be written")
        check_writable(output.parent, "--output", output)
        inputs = [path for root in roots for path in RunFolder(root).files]
        check_targets([output], inputs, overwrite=parsed.overwrite)
    comparison = compare(roots)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_page(
            "compare.html",
            output,
            title="Runs compared",
            comparison=comparison,
            explanation=explanation(comparison),
            text=interval_text,
            members=_linked(comparison.members, output.parent),
            measures=[head for head, _ in comparison.tables],
        )
    print("\n".join(lines_of(comparison)))
    if output is not None:
        print(f"\nwritten to {output}")


if __name__ == "__main__":
    run(main)
