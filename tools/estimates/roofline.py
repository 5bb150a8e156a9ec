"""``python -m tools.estimates.roofline``: how long the Triton backend's streaming kernels should take, estimated.

Nothing here is measured, and no GPU is needed. Two figures stand side by side for each kernel and for each call.

Floor: the most of three times, of the products at the dense tensor rate, of the exponentials at 16 per clock and
multiprocessor, and of the memory traffic; their sum is the pessimistic figure. A kernel's floor is that of the work it
does; a call's is that of the least work for its results: a product for each similarity and one for each gradient (two
and two more for the bank's), two exponentials for a pair, every input and result moved once. Memory traffic is that of
the launch's geometry: the streamed side counts once where one group's fits the L2, otherwise once for every block that
walks over it, which is an upper bound.

Estimate: the kernel is compiled for the chip, and the instructions in its loop over the rows are counted. Each unit of
a multiprocessor needs some clocks for them, per tile (tools.estimates.throughput). Where all of them overlap perfectly,
the unit that needs the most binds the kernel; where nothing overlaps the products, times add (``in series``). Blocks
are spread over the multiprocessors, and the fullest one determines the time: blocks that are resident together share
its units, so that more of them hide latency but add no rate. The products in the machine code are compared with those
that the algorithm asks for; warps may repeat some. Where the buffer selects, a tile with a candidate pays for the
branch that takes it in; how many do is computed for rows in random order.

Left out: latency, what comes before and after the loop, launches, the passes over single rows (the selection's limits,
its collection and its sorting among them), the selection by a buffer where it is for flagged queries alone, the
clearing of buffers, and clocks below the data sheet's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from csv import DictWriter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from benchmarks.problems import Problem

from ..command import run
from ..machine_code.calls import Call, Gather
from ..machine_code.launches import Compiled, launches
from ..machine_code.sass import Loop
from ..machine_code.triton_kernels import title
from .launch_work import tiles_with_candidates, work
from .throughput import RATES, Clocks, Rates, clocks, flop, merged

TARGET = Call(torch.bfloat16, "ieee", 128, groups=1, queries=65536, rows=16384)
_BOTH = replace(TARGET, k=64, student_grad=True)
CALLS: dict[str, Call | Gather] = {
    "design target, forward": TARGET,
    "design target, forward, k": replace(TARGET, k=64),
    "design target, gradient": replace(TARGET, student_grad=True),
    "design target, gradient, k": _BOTH,
    "design target, gradient, k and labels": replace(_BOTH, labelled=True),
    "design target, both gradients": replace(TARGET, student_grad=True, bank_grad=True),
    "D = 64": replace(_BOTH, features=64),
    "D = 256": replace(_BOTH, features=256),
    "tf32": replace(_BOTH, dtype=torch.float32, precision="tf32"),
    "tf32, D = 64": replace(_BOTH, dtype=torch.float32, precision="tf32", features=64),
    "float32, D = 64": replace(_BOTH, dtype=torch.float32, features=64),
    "few queries": replace(_BOTH, queries=256, rows=1 << 20),
    "stage 1": replace(_BOTH, k=0, features=512, queries=6, rows=36),
    "stage 2": replace(_BOTH, k=0, features=256, queries=6, rows=36, groups=49),
    "stage 3, hard negatives": replace(TARGET, k=64, sides=0, features=64, queries=1024, rows=8192),
    "hard negatives, long bank": replace(TARGET, k=512, sides=0, queries=1024, rows=1 << 20),
    "a training step's size, k": replace(_BOTH, features=64, queries=1024, rows=8192),
    "InfoNCE against all": replace(TARGET, dtype=torch.float32, sides=1, student_grad=True, queries=1024, rows=8192),
    "stage 3, published": Gather(torch.float32, 512, groups=1, rows=4096, all_gradients=False),
}


@dataclass(frozen=True)
class LeastTime:
    """Milliseconds that each kind of work takes at the least."""

    products: float
    exponentials: float
    memory: float

    @property
    def most(self) -> float:
        return max(self.products, self.exponentials, self.memory)

    @property
    def sum(self) -> float:
        return self.products + self.exponentials + self.memory


def least_time(rates: Rates, precision: str, flops: float, exponentials: float, traffic: float) -> LeastTime:
    special = rates.special * rates.chip.processors * rates.clock
    return LeastTime(
        1000 * flops / rates.product_rate(precision), 1000 * exponentials / special, 1000 * traffic / rates.memory
    )


def least(call: Call | Gather) -> tuple[int, int, int]:
    """(flop, exponentials, bytes) that a call cannot do without."""
    if isinstance(call, Gather):
        problem = Problem("anatomical_contrast", call.queries, call.rows, call.features, call.k, groups=call.groups)
        rows = call.features * (call.dtype.itemsize * (2 * call.queries + call.rows) + 4 * 2 * call.queries)
        moved = call.groups * (rows + call.queries * (8 * call.k + 4 + 8))
        return 2 * problem.multiply_adds, problem.exponentials, moved
    operator = ("hard_negatives", "info_nce", "action_contrast")[call.sides]
    sizes = call.queries, call.rows, call.features
    problem = Problem(operator, *sizes, groups=call.groups, bank_gradient=call.bank_grad)
    multiply_adds = problem.multiply_adds
    if call.sides and not call.student_grad:
        multiply_adds -= problem.pairs * call.features
    inputs = call.features * call.dtype.itemsize * (max(1, call.sides) * call.queries + call.rows)
    inputs += 8 * (call.queries + call.rows) * call.labelled
    selected = call.k * (4 + 8)
    results = call.queries * (selected + (0, 8, 4 + 3 * 8)[call.sides] + 4 * call.features * call.student_grad)
    results += 4 * call.rows * call.features * call.bank_grad
    return 2 * multiply_adds, problem.exponentials, call.groups * (inputs + results)


@dataclass(frozen=True)
class KernelEstimate:
    """The estimate of one kernel, or of a call's kernels one after the other."""

    chip: str
    call: str
    kernel: str
    groups: int
    n: int
    m: int
    d: int
    k: int
    dtype: str
    tile: str
    registers: int
    programs: int  # resident on a multiprocessor
    waves: float
    flop: int
    exponentials: int
    bytes: int
    bytes_without_l2: int
    products_ms: float
    exponentials_ms: float
    memory_ms: float
    floor_ms: float
    sum_ms: float
    binding: str
    repeats: float  # products in the machine code over those that the algorithm asks for
    branch: float  # fraction of tiles with a candidate for the selection
    overlapped_ms: float
    serial_ms: float

    @property
    def fraction(self) -> float:
        """Of the floor's speed, at the best."""
        return self.floor_ms / self.overlapped_ms

    HEADER = (
        "| chip | call | kernel | tile, warps, stages | programs, waves | Tflop | G exp | MB (without L2) | "
        "ms: products | exponentials | memory | floor | sum | bound by | ESTIMATE ms | in series | fraction of floor |"
    )

    def __str__(self) -> str:
        spans = self.products_ms, self.exponentials_ms, self.memory_ms, self.floor_ms, self.sum_ms
        cells = (
            self.chip,
            f"{self.call}: {self.sizes}",
            self.kernel,
            self.tile,
            f"{self.programs}, {self.waves:.2f}" if self.tile else "",
            f"{self.flop / 1e12:.4g}",
            f"{self.exponentials / 1e9:.4g}",
            f"{self.bytes / 1e6:.4g} ({self.bytes_without_l2 / 1e6:.4g})",
            *(f"{x:.3g}" for x in spans),
            self.binding + f", products × {self.repeats:.2f}" * (self.repeats > 1),
            f"{self.overlapped_ms:.3g}",
            f"{self.serial_ms:.3g}",
            f"{self.fraction:.0%}",
        )
        return f"| {' | '.join(map(str, cells))} |"

    @property
    def sizes(self) -> str:
        groups, k = f"G={self.groups} " * (self.groups > 1), f" k={self.k}" * (self.k > 0)
        return f"{groups}N={self.n} M={self.m} D={self.d}{k} {self.dtype}"


def tile_clocks(compiled: Compiled, rates: Rates, precision: str) -> tuple[Clocks, float, float]:
    """(clocks of a tile, how often its machine code takes the products, how often the selection's branch).

    Raises:
        ValueError: the machine code has fewer products than the algorithm asks for.
    """
    launch, task = compiled.launch, work(compiled.launch)
    once, inner, append = Loop(compiled.sass).parts()
    steps = launch["FEATURES"] // launch["WIDTH"] if inner else 1
    warps = compiled.threads // 32
    through = merged([(once, 1), (inner, steps)])
    expected = task.tile_pairs * task.pair_flop
    repeats = flop(through, warps) / expected if precision != "ieee" else 1.0
    if repeats < 1:
        raise ValueError(
            f"{launch.name} {launch.tile}: {repeats:.3f} of the products asked for are in the machine code"
        )
    entered = tiles_with_candidates(launch, task.tiles)
    total = clocks(rates, through, warps, precision) + clocks(rates, append, warps, precision) * entered
    loads = task.tile_bytes * rates.chip.processors / rates.l2
    return total + Clocks(l2=loads), repeats, entered


def estimate(name: str, call: Call | Gather, rates: Rates, compiled: Compiled) -> KernelEstimate:
    """One kernel."""
    task, launch = work(compiled.launch), compiled.launch
    precision = "16" if call.dtype.itemsize == 2 else call.precision
    traffic = task.traffic(rates.l2_size)
    bound = least_time(rates, precision, task.flop, task.exponentials, traffic)
    tile, repeats, entered = tile_clocks(compiled, rates, precision)
    fullest = -(-task.works // rates.chip.processors) * task.tiles  # tiles of the multiprocessor with the most
    spans = [1000 * fullest * x / rates.clock for x in (tile.overlapped, tile.serial)]
    waves = task.works / (max(1, compiled.programs) * rates.chip.processors)
    return KernelEstimate(
        *(rates.chip.name, name, title(launch)),
        *(call.groups, call.queries, call.rows, call.features, call.k, call.kind),
        *(launch.tile, compiled.registers, compiled.programs, waves),
        *(task.flop, task.exponentials, traffic, task.most_traffic),
        *(bound.products, bound.exponentials, bound.memory, bound.most, bound.sum),
        *("memory" if bound.memory > spans[0] else tile.binding, repeats, entered),
        *(max(x, bound.memory) for x in spans),
    )


def estimates(name: str, call: Call | Gather, rates: Rates) -> Iterator[KernelEstimate]:
    """The kernels of a call, then all of them against the least work for its results."""
    busy = [x for x in launches(rates.chip, call) if x.name != "buffered" or x["flags"] is None]
    rows = [estimate(name, call, rates, launch.compile()) for launch in busy]
    yield from rows
    precision = "16" if call.dtype.itemsize == 2 else call.precision
    flops, exponentials, moved = least(call)
    bound = least_time(rates, precision, flops, exponentials, moved)
    yield replace(
        rows[0],
        kernel="all",
        tile="",
        binding="",
        repeats=1.0,
        flop=flops,
        exponentials=exponentials,
        bytes=moved,
        bytes_without_l2=sum(row.bytes_without_l2 for row in rows),
        products_ms=bound.products,
        exponentials_ms=bound.exponentials,
        memory_ms=bound.memory,
        floor_ms=bound.most,
        sum_ms=bound.sum,
        overlapped_ms=sum(row.overlapped_ms for row in rows),
        serial_ms=sum(row.serial_ms for row in rows),
    )


ChipName = Literal[tuple(RATES)]
CallName = Literal[tuple(CALLS)]


def main(
    chips: Sequence[ChipName] = tuple(RATES), calls: Sequence[CallName] = tuple(CALLS), csv: Path | None = None
) -> None:
    """Estimates, not measurements.

    Args:
        chips: to estimate for.
        calls: to estimate.
        csv: also write the estimates to this file.
    """
    print("ESTIMATES from data sheets and compiled kernels; nothing here was measured.\n")
    print(KernelEstimate.HEADER)
    print("|" + "---|" * (KernelEstimate.HEADER.count("|") - 1))
    found = []
    for chip in chips:
        for name in calls:
            for row in estimates(name, CALLS[name], RATES[chip]):
                print(row, flush=True)
                found.append({**asdict(row), "fraction_of_floor": row.fraction, "source": "estimate"})
    if csv and found:
        csv.parent.mkdir(parents=True, exist_ok=True)
        with csv.open("w", newline="") as file:
            writer = DictWriter(file, list(found[0]))
            writer.writeheader()
            writer.writerows(found)


if __name__ == "__main__":
    run(main)
