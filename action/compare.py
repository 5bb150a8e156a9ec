# PYTHON_ARGCOMPLETE_OK
"""Compare runs that were tested on the same cases: ``python -m action.compare RUN RUN ...``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from action.cli import command_parser, run
from action.errors import InputError
from action.files import check_targets
from action.intervals import RESAMPLES, Interval, Resamples
from action.pages.page import number, write_page
from action.pages.summary import Head, heads, read_summary
from action.run_folder import RunFolder


class Row(NamedTuple):
    """A run's results in one class.

    Attributes:
        class_name: or "mean" of the classes.
        run: its name.
        value: its own mean.
        difference: from the first run, over the cases in which both have a value; ``None`` for the first itself.
    """

    class_name: str
    run: str
    value: Interval
    difference: Interval | None


class Comparison(NamedTuple):
    """Runs beside each other.

    Attributes:
        names: of the runs, the one first that the others are compared with.
        cases, patients: how many there are.
        tables: rows of every measure.
    """

    names: list[str]
    cases: int
    patients: int
    tables: list[tuple[Head, list[Row]]]


def compare(roots: Sequence[Path]) -> Comparison:
    """Read the summaries of runs and compare all with the first.

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
    tables = []
    for head in heads(first["unit"]):
        values = [_values(summary, head.name, cases, classes) for summary in summaries]
        tables.append((head, list(_rows(names, [*classes, "mean"], values, resamples))))
    return Comparison(names, len(cases), len(set(patients)), tables)


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


def _rows(
    names: Sequence[str], classes: Sequence[str], values: Sequence[np.ndarray], resamples: Resamples
) -> Iterator[Row]:
    means = [resamples.intervals(of_run) for of_run in values]
    differences = [resamples.intervals(of_run - values[0]) for of_run in values[1:]]
    for c, class_name in enumerate(classes):
        for r, name in enumerate(names):
            yield Row(class_name, name, means[r][c], differences[r - 1][c] if r else None)


def interval_text(interval: Interval, digits: int, sign: bool = False) -> str:
    """A mean and its interval in brackets; a dash where there is none."""
    mean, low, high = (number(value, digits, sign) for value in interval)
    return mean if isnan(interval.mean) else f"{mean} [{low}, {high}]"


def lines_of(comparison: Comparison) -> list[str]:
    """What is printed: a table of every measure."""
    wide = max(len(name) for name in comparison.names) + 2
    lines = [explanation(comparison)]
    for head, rows in comparison.tables:
        longest = max(len(row.class_name) for row in rows) + 2
        lines += ["", f"{head.head:<{longest}}{'run':<{wide}}{'mean':<24}difference from {comparison.names[0]}"]
        for row in rows:
            difference = ""
            if row.difference is not None:
                difference = interval_text(row.difference, head.digits, sign=True)
                difference += " *" if row.difference.excludes_zero else ""
            value = interval_text(row.value, head.digits)
            lines.append(f"{row.class_name:<{longest}}{row.run:<{wide}}{value:<24}{difference}".rstrip())
    return lines


def explanation(comparison: Comparison) -> str:
    """One sentence on the intervals, for the text and the page."""
    return (
        f"{comparison.cases} cases of {comparison.patients} patients; in brackets 95 % intervals of {RESAMPLES} "
        "resamples of the patients, the same for all runs; * 0 is not in the interval of the difference"
    )


def main(arguments: list[str]) -> None:
    """The command line of ``python -m action.compare``."""
    parser = command_parser("compare")
    parser.add_argument("runs", type=str, nargs="+", metavar="RUN", help="folders of runs; the first is the reference")
    parser.add_argument("-o", "--output", type=str | None, default=None, help="HTML file to write the same to")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    parsed = parser.parse_args(arguments)
    roots = [Path(folder) for folder in parsed.runs]
    comparison = compare(roots)
    if parsed.output is not None:
        output = Path(parsed.output)
        inputs = [path for root in roots for path in RunFolder(root).files]
        check_targets([output], inputs, overwrite=parsed.overwrite)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_page(
            "compare.html",
            output,
            title="Runs compared",
            comparison=comparison,
            explanation=explanation(comparison),
            text=interval_text,
        )
    print("\n".join(lines_of(comparison)))
    if parsed.output is not None:
        print(f"\nwritten to {parsed.output}")


if __name__ == "__main__":
    run(main)
