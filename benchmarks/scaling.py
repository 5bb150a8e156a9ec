"""A bank divided among processes, and whole in each: ``python -m benchmarks.scaling``.

Processes of this machine, one thread each, over gloo: where they are more than its cores, times say how the work is
shared, not how it scales. What a process holds and sends is the same on any machine.
"""

from __future__ import annotations

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
from action_kernels import MemoryBank, distributed
from action_kernels.distributed import ShardedMemoryBank

from .collectives import recorded
from .measure import peak_meter, quantiles
from .table import Row, append, describe


class Sizes(NamedTuple):
    """Of a measurement."""

    queries: int  # of each process
    rows: int  # of the whole bank
    features: int
    k: int


def main(
    processes: tuple[int, ...] = (1, 2, 4),
    queries: int = 1024,
    rows: int = 65536,
    features: int = 64,
    k: int = 16,
    rounds: int = 5,
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
        output: folder of scaling.csv, to which the measurements are added.
    """
    sizes = Sizes(queries, rows, features, k)
    print("processes  bank       ms   bank MiB   peak MiB above it   sent MiB   collectives")
    for world in processes:
        results = measured(world, sizes, rounds)
        for row in results:
            print(
                f"{world:9}  {row['bank']:8} {row['ms']:5.0f} {row['bank_mib']:10.1f} {row['peak_mib']:19.1f} "
                f"{row['sent_mib']:10.2f} {row['collectives']:13}"
            )
        append(output / "scaling.csv", [{**row, **describe("cpu")} for row in results])


def measured(world: int, sizes: Sizes, rounds: int) -> list[Row]:
    """The divided bank, then the whole one: of the slowest process, and of the one that holds the most."""
    queue = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder, "rendezvous")
        mp.start_processes(_process, (world, sizes, rounds, meeting, queue), world, start_method="spawn")
        rows: list[Row] = queue.get()
        return rows


def _process(rank: int, world: int, sizes: Sizes, rounds: int, meeting: Path, queue: SimpleQueue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    torch.manual_seed(rank)
    rows = [_measure("divided", sizes, rounds), _measure("whole", sizes, rounds)]
    if rank == 0:
        queue.put(rows)
    dist.destroy_process_group()


def _measure(kind: str, sizes: Sizes, rounds: int) -> Row:
    n, m, d, k = sizes
    world = dist.get_world_size()
    bank = ShardedMemoryBank(m, d) if kind == "divided" else MemoryBank(m, d)
    share = m // world + (dist.get_rank() < m % world) if kind == "divided" else m
    bank.push(torch.randn(share, d))
    student, teacher = torch.randn(n, d, requires_grad=True), torch.randn(n, d)

    def step() -> None:
        student.grad = None
        if isinstance(bank, ShardedMemoryBank):
            result = distributed.action_contrast(student, teacher, bank, k)
        else:
            result = action_kernels.action_contrast(student, teacher, bank.rows, k)
        result.distillation.backward()

    with recorded() as calls:
        step()
    spans = []
    for _ in range(rounds):
        dist.barrier()
        begin = time.perf_counter()
        step()
        spans.append(1000 * (time.perf_counter() - begin))
    meter = peak_meter("cpu")
    step()
    most = torch.tensor([quantiles(spans).median, meter.bytes() / 2**20], dtype=torch.float64)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    milliseconds, peak = most.tolist()
    return {
        "processes": world,
        "bank": kind,
        "queries": n,
        "rows": m,
        "features": d,
        "k": k,
        "ms": round(milliseconds, 1),
        "bank_mib": round(bank.rows.nbytes / 2**20, 2),
        "peak_mib": round(peak, 1),
        "sent_mib": round(sum(call.sent for call in calls) / 2**20, 3),
        "collectives": len(calls),
    }


if __name__ == "__main__":
    auto_cli(main)
