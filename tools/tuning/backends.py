"""``python -m tools.tuning.backends TABLE``: make the faster backend a GPU's automatic choice, by size.

Reads the table of ``python -m benchmarks --device cuda``, in which the backends took turns on every problem, compares
them by the geometric mean of their times' ratios over the problems of an operator, dtype and work, and writes the
orders into the package: ``action_kernels/backends/measured/<device name>.json``.
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


def logarithms(rows: list[Row]) -> dict[tuple[str, int], list[dict[str, float]]]:
    """By operator with dtype, and work: for every problem that several backends ran, the logarithms of their times."""
    whole = [row for row in rows if row["pass"] == ("forward" if row["operator"] == "relation_negatives" else "both")]
    problems: dict[tuple, dict[str, float]] = defaultdict(dict)
    for row in whole:
        if row["program"].startswith("fused") and row["backend"] in GPU_BACKENDS:
            key = tuple(row[name] for name in SIZES)
            problems[key][row["backend"]] = math.log(float(row["ms"]))  # the newest
    kernels: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    for key, spans in problems.items():
        if len(spans) > 1:
            sizes = dict(zip(SIZES, key, strict=True))
            g, n, m, d = (int(sizes[name]) for name in "GNMD")
            drawn = sizes["operator"] == "relation_negatives"
            operator = choice.key_of(
                KERNEL.get(sizes["operator"], sizes["operator"]), () if drawn else (sizes["dtype"],)
            )
            kernels[operator, 0 if drawn else choice.work_of((g, n, d), (g, m, d))].append(spans)
    return kernels


def orders(rows: list[Row]) -> dict[str, list[dict]]:
    """By operator and dtype: for each work the backends, the fastest first, on problems that all of them ran."""
    found: dict[str, list[dict]] = defaultdict(list)
    for (kernel, work), problems in sorted(logarithms(rows).items()):
        names = sorted(set.intersection(*(set(spans) for spans in problems)), key=GPU_BACKENDS.index)
        means = {name: sum(spans[name] for spans in problems) / len(problems) for name in names}
        found[kernel].append({"work": work, "order": sorted(names, key=means.__getitem__)})
        ratios = ", ".join(f"{name} {math.exp(means[name] - min(means.values())):.2f}" for name in names)
        print(f"{kernel}, {work:.2g} multiply-adds, {len(problems)} problems, time over the fastest's: {ratios}")
    return dict(found)


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
