"""What a bank that GPUs share would cost: ``python -m tools.estimates.shared_bank``. A prediction: none of it has run.

A step is the forward pass of ``action_contrast`` with hard negatives and the student's gradient, on R processes with as
many queries each. Three ways to share the bank:

* *whole*: every process holds all rows, as long as these take a fifth of its memory;
* *visits*: every process holds M / R rows and all queries visit it, as ``action_kernels.distributed`` does: queries go
  out, and statistics, candidates and contributions to the gradient come home, while nobody computes;
* *rotation*: the parts go round instead, twice, since a gradient needs the log-sum-exps over the whole bank; the next
  part travels while one is compared. Not built: this says where it would pay.

Both passes over a bank score its rows on a GPU, whole or not, so that comparing takes N M D / ``RATE`` either way.
``RATE`` and ``SHORTEST`` were measured on an H200 with kernels that selected through a buffer for every query.
"""

from __future__ import annotations

from typing import NamedTuple

from ..command import run

RATE = 1.04e13  # N M D a second, k = 64
SHORTEST = 1.3e-3  # seconds of a call, however small
MEMORY = 80e9 / 5  # bytes for a bank
NVLINK, INFINIBAND = 2.5e11, 5e10  # bytes a second and process, one way
IN_A_NODE = 8  # processes that NVLink joins

QUERIES, FEATURES, K = 4096, 128, 64  # of every process; bfloat16
ROW = 2 * FEATURES  # bytes
VISITOR = 2 * ROW + 4 * FEATURES + 12 * K + 40  # bytes through a part: both rows; gradient, candidates, statistics

ROWS = (10**6, 10**7, 10**8, 10**9)
PROCESSES = (8, 64, 256, 1024)


class Seconds(NamedTuple):
    """Of a step."""

    whole: float | None  # none: does not fit
    visits: float
    rotation: float


def seconds(processes: int, rows: int) -> Seconds:
    """A step with so many bank rows on all processes together."""
    link = NVLINK if processes <= IN_A_NODE else INFINIBAND
    comparing = QUERIES * rows * FEATURES / RATE  # all rows, or a share of them with as many times the queries
    part = max(comparing / (2 * processes), SHORTEST, rows / processes * ROW / link)
    return Seconds(
        comparing if rows * ROW <= MEMORY else None,
        comparing + (processes - 1) * QUERIES * VISITOR / link,
        2 * processes * part,
    )


def crossover(processes: int) -> int:
    """Rows of a process, to a thousand, from which on rotation would be faster than visits."""
    return next(rows for rows in range(1000, 10**7, 1000) if _rotates(processes, rows * processes))


def _rotates(processes: int, rows: int) -> bool:
    found = seconds(processes, rows)
    return found.rotation < found.visits


def main() -> None:
    """Print a step's milliseconds by ways, processes and rows, and where rotation would pay."""
    print(f"A prediction, not a measurement: N = {QUERIES:,} a process, D = {FEATURES}, k = {K}, bfloat16; ms")
    print(f"{'processes':>9} {'bank rows':>14} {'whole':>9} {'visits':>9} {'rotation':>9}")
    for processes in PROCESSES:
        for rows in ROWS:
            found = [f"{1000 * x:,.0f}" if x is not None else "no room" for x in seconds(processes, rows)]
            print(f"{processes:9} {rows:14,} " + " ".join(f"{x:>9}" for x in found))
    for processes in PROCESSES:
        print(f"{processes} processes: rotation would be faster from {crossover(processes):,} rows of each on")


if __name__ == "__main__":
    run(main)
