"""A bank divided among processes, and whole in each: ``python -m benchmarks.scaling``, and a prediction for GPUs.

Processes of this machine, one thread each, over gloo: where they are more than its cores, times say how the work is
shared, not how it scales. What a process holds and sends is the same on any machine.
"""

from __future__ import annotations

import os
import tempfile
import time
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from jsonargparse import auto_cli

import action_kernels
from action_kernels import distributed
from tools.estimates import shared_bank

from .collectives import recorded
from .measure import peak_meter, quantiles
from .table import Row, append, describe


class Sizes(NamedTuple):
    """Of a measurement."""

    queries: int  # of each process
    rows: int  # of the whole bank
    features: int
    k: int
    shares: tuple[float, ...] = ()  # of all queries and of the bank that each process has; none: all alike

    def own(self, count: int, rank: int, world: int) -> int:
        """Of so many, those of a process."""
        shares = self.shares or (1.0,) * world
        ends = [round(count * sum(shares[:i]) / sum(shares)) for i in (rank, rank + 1)]
        return ends[1] - ends[0]


def main(
    processes: tuple[int, ...] = (1, 2, 4),
    queries: int = 1024,
    rows: int = 65536,
    features: int = 64,
    k: int = 16,
    rounds: int = 5,
    shares: tuple[float, ...] = (),
    output: Path = Path("results/benchmarks"),
) -> None:
    """Time, memory and traffic of ``action_contrast`` with the student's gradient.

    Args:
        processes: how many; one after the other.
        queries: of each process.
        rows: of the whole bank.
        features: of a row.
        k: hard negatives per query.
        rounds: calls that are timed.
        shares: of the queries and of the bank, for as many processes in place of ``processes``; beside them, one
            process with all queries and the whole bank, on all cores.
        output: folder of scaling.csv, to which the measurements are added.
    """
    sizes = Sizes(queries, rows, features, k, shares)
    print("processes  bank       ms   in collectives   bank MiB   peak MiB above it   sent MiB   collectives")
    for world in (len(shares),) if shares else processes:
        show(measured(world, sizes, ("divided",) if shares else ("divided", "whole"), rounds), output)
    if shares:
        alone = Sizes(queries * len(shares), rows, features, k)
        show(measured(1, alone, ("whole",), rounds, threads=os.cpu_count() or 1), output)
    print()
    shared_bank.main()


def show(results: list[Row], output: Path) -> None:
    """Print the measurements, and add them to the table."""
    for row in results:
        print(
            f"{row['processes']:9}  {row['bank']:8} {row['ms']:5.0f} {row['in_collectives_ms']:16.0f} "
            f"{row['bank_mib']:10.1f} {row['peak_mib']:19.1f} {row['sent_mib']:10.2f} {row['collectives']:13}"
        )
    append(output / "scaling.csv", [{**row, **describe("cpu")} for row in results])


def measured(world: int, sizes: Sizes, kinds: tuple[str, ...], rounds: int, threads: int = 1) -> list[Row]:
    """Banks of these kinds: of the slowest process, and of the one that holds the most."""
    queue = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder, "rendezvous")
        mp.start_processes(
            _process, (world, sizes, kinds, rounds, threads, meeting, queue), world, start_method="spawn"
        )
        rows: list[Row] = queue.get()
        return rows


def _process(
    rank: int,
    world: int,
    sizes: Sizes,
    kinds: tuple[str, ...],
    rounds: int,
    threads: int,
    meeting: Path,
    queue: SimpleQueue,
) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    torch.manual_seed(rank)
    rows = [_measure(kind, sizes, rounds) for kind in kinds]
    if rank == 0:
        queue.put(rows)
    dist.destroy_process_group()


def _measure(kind: str, sizes: Sizes, rounds: int) -> Row:
    m, d, k = sizes.rows, sizes.features, sizes.k
    rank, world = dist.get_rank(), dist.get_world_size()
    n = sizes.own(sizes.queries * world, rank, world)
    bank = torch.randn(m if kind == "whole" else sizes.own(m, rank, world), d)
    student, teacher = torch.randn(n, d, requires_grad=True), torch.randn(n, d)

    def step() -> None:
        student.grad = None
        package = action_kernels if kind == "whole" else distributed
        result = package.action_contrast(student, teacher, bank, k)
        result.distillation.backward()

    step()
    spans, waits = [], []
    for _ in range(rounds):
        dist.barrier()
        with recorded() as calls:
            begin = time.perf_counter()
            step()
            spans.append(1000 * (time.perf_counter() - begin))
        waits.append(1000 * sum(call.seconds for call in calls))
    meter = peak_meter("cpu")
    step()
    sent = sum(call.sent for call in calls) / 2**20
    medians = [quantiles(spans).median, quantiles(waits).median]
    most = torch.tensor([*medians, bank.nbytes / 2**20, meter.bytes() / 2**20, sent], dtype=torch.float64)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    milliseconds, waiting, held, peak, sent = most.tolist()
    return {
        "processes": world,
        "bank": kind,
        "queries": sizes.queries,
        "rows": m,
        "features": d,
        "k": k,
        "ms": round(milliseconds, 1),
        "in_collectives_ms": round(waiting, 1),
        "bank_mib": round(held, 2),
        "peak_mib": round(peak, 1),
        "sent_mib": round(sent, 3),
        "collectives": len(calls),
    }


if __name__ == "__main__":
    auto_cli(main)
