"""``python -m tools.tuning.backends TABLE``: make the faster backend a GPU's automatic choice.

Reads the table of ``python -m benchmarks --device cuda``, in which the backends took turns on every problem, compares
them by the geometric mean of their times' ratios over an operator's problems in one dtype, and writes the order into
the package: ``action_kernels/backends/measured/<device name>.json``.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path

from action_kernels.backends import choice
from benchmarks.problems import KERNEL
from benchmarks.programs import GPU_BACKENDS
from benchmarks.table import Row, read

from ..command import refuse, run

SIZES = ("operator", "G", "N", "M", "D", "k", "dtype", "bank_gradient")


def logarithms(rows: list[Row]) -> dict[str, list[dict[str, float]]]:
    """By operator and dtype: for every problem that several backends ran, each one's logarithm of the milliseconds."""
    whole = [row for row in rows if row["pass"] == ("forward" if row["operator"] == "relation_negatives" else "both")]
    problems: dict[tuple, dict[str, float]] = defaultdict(dict)
    for row in whole:
        if row["program"].startswith("fused") and row["backend"] in GPU_BACKENDS:
            key = tuple(row[name] for name in SIZES)
            problems[key][row["backend"]] = math.log(float(row["ms"]))  # the newest
    kernels: dict[str, list[dict[str, float]]] = defaultdict(list)
    for key, spans in problems.items():
        if len(spans) > 1:
            operator = key[SIZES.index("operator")]
            dtypes = () if operator == "relation_negatives" else (key[SIZES.index("dtype")],)
            kernels[choice.key_of(KERNEL.get(operator, operator), dtypes)].append(spans)
    return kernels


def orders(rows: list[Row]) -> dict[str, list[str]]:
    """By operator and dtype: backends, the fastest first. Compared on the problems that all of them ran."""
    found = {}
    for kernel, problems in logarithms(rows).items():
        names = sorted(set.intersection(*(set(spans) for spans in problems)), key=GPU_BACKENDS.index)
        means = {name: sum(spans[name] for spans in problems) / len(problems) for name in names}
        found[kernel] = sorted(names, key=means.__getitem__)
        ratios = ", ".join(f"{name} {math.exp(means[name] - min(means.values())):.2f}" for name in found[kernel])
        print(f"{kernel}, {len(problems)} problems, time over the fastest's: {ratios}")
    return found


def main(table: Path) -> None:
    """Write a GPU's automatic choice.

    Args:
        table: operators.csv of a GPU.
    """
    if not table.is_file():
        refuse(f"{table} does not exist: run python -m benchmarks --device cuda first")
    rows = [row for row in read(table) if row["backend"] in GPU_BACKENDS]
    devices = sorted({row["device"] for row in rows})
    if len(devices) != 1:
        refuse(f"{table}: must be of one GPU, not of {', '.join(devices) or 'none'}")
    found = orders(rows)
    if not found:
        refuse(f"{table}: no problem was run by several backends; leave --backend out")
    path = choice.path_of(devices[0])
    path.parent.mkdir(exist_ok=True)
    versions = {name: rows[-1][name] for name in ("torch", "commit", "date")}
    path.write_text(json.dumps({"device": devices[0], **versions, "backends": found}, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    run(main)
