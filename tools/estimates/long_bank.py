"""``python -m tools.estimates.long_bank``: how long the CUDA backend's buffer should take to select from a long bank.

It selects for queries that limits from group maxima do not serve; for all of them, where k is too large for limits.

Nothing here is measured on a GPU. The walk of a warp is simulated on random similarities, with the buffers, clearings
and shared thresholds of ``csrc/cuda/select.cuh``: it tells how often each part of the kernel runs. The machine code in
``action_kernels/_cuda_kernels.so`` tells how many instructions each part has. A multiprocessor issues one instruction a
clock for each of its four schedulers, a block's warps lie on all of them, and the fullest multiprocessor determines the
time. Counted as if it all ran: both ways to load a tile, of which the kernel takes one.

Printed beside the score product alone at the data sheet's rates, which takes the tensor cores some time, and the memory
more: for a selection to follow, its result has to be written. ``overlapped`` where issuing and tensor cores hide each
other, ``in series`` where they do not, against the written product. Left out: latency, launches, the final sorting.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..command import run
from ..machine_code.cuda_kernels import LIBRARY, Kernel, kernels
from ..machine_code.sass import parse
from .throughput import RATES, Rates, product_flop

TILE = 64  # rows
WARP_ROWS = 16
FEATURES = 128


class Plan(NamedTuple):
    """How the buffer walks through a bank, as ``csrc/cuda/search.cuh`` has it."""

    works: int  # walks of a block through a split of the bank
    num_splits: int
    span: int  # bank rows of a split
    running: int  # blocks that share the walks
    kept: int  # candidates of a split
    limit: int  # of what a clearing may leave in a buffer
    capacity: int  # of a buffer, per query
    quota: int  # this many candidates of every split are enough for the selection


def plan(processors: int, queries: int, rows: int, k: int, library: Path = LIBRARY) -> Plan:
    """What the library does where it selects k of ``rows`` rows, on a GPU of so many multiprocessors."""
    numbers = (ctypes.c_int64 * 8)()  # a field each
    sizes = (ctypes.c_int64(size) for size in (processors, queries, rows, k))
    ctypes.CDLL(str(library)).action_buffer_plan(*sizes, numbers)
    return Plan(*numbers)


@dataclass
class Events:
    """How often a warp's parts run in a walk, on average over the splits."""

    tiles: float = 0
    turns: float = 0  # of the loop over a tile's candidates
    candidates: float = 0  # of a row
    clears: float = 0
    exchanges: float = 0  # of a row
    compared: float = 0  # keys that a bisection compares, by 32
    moved: float = 0  # keys that a clearing moves or leaves, by 32


class Walk:
    """Splits that walk over their part of a bank side by side, 16 queries' rows each."""

    def __init__(self, planned: Plan, rows: int = WARP_ROWS) -> None:
        self.planned, self.events = planned, Events()
        shape = planned.num_splits, rows
        self.keys = np.full((*shape, planned.capacity), -np.inf, dtype=np.float32)
        self.counts = np.zeros(shape, dtype=int)
        self.threshold = np.full(shape, -np.inf, dtype=np.float32)
        self.floors = np.full(shape, -np.inf, dtype=np.float32)

    def take(self, tile: np.ndarray) -> None:
        """Similarities [num_splits, rows, 64] of each split's next tile."""
        num_splits, rows, _ = tile.shape
        better = tile > self.threshold[..., None]
        # A lane has columns 2 q and 2 q + 1 of every eight, in rows g and g + 8.
        by_lane = better.reshape(num_splits, 2, rows // 2, 8, 4, 2).sum(axis=(1, 3, 5))
        self.events.tiles += 1
        self.events.turns += by_lane.max(axis=(1, 2)).mean()
        for place in zip(*np.nonzero(better.any(axis=2)), strict=True):
            new, count = tile[place][better[place]], self.counts[place]
            self.keys[place][count : count + len(new)] = new
            self.counts[place] += len(new)
            if self.counts[place] > self.planned.capacity - TILE:
                self.clear(place)
        self.events.candidates += better.sum() / (num_splits * rows)
        tiles = int(self.events.tiles)
        if num_splits > 1 and tiles & (tiles - 1) == 0:
            self.exchange()

    def clear(self, place: tuple) -> None:
        keys = self.keys[place][: self.counts[place]]
        low = self.bisect(keys, self.planned.kept, self.planned.limit)
        self.events.clears += 1 / self.planned.num_splits
        self.events.moved += math.ceil(len(keys) / 32) / self.planned.num_splits
        kept = keys[keys >= low]
        self.counts[place] = len(kept)
        self.keys[place][: len(kept)] = kept
        self.threshold[place] = max(self.threshold[place], low)

    def exchange(self) -> None:
        quota = self.planned.quota
        slack = quota + quota // 4
        for place in np.ndindex(*self.counts.shape):
            self.events.exchanges += 1 / self.counts.size
            if self.counts[place] > slack:
                found = self.bisect(self.keys[place][: self.counts[place]], quota, slack)
                self.floors[place] = max(self.floors[place], found)
        np.maximum(self.threshold, np.nextafter(self.floors.min(axis=0), -np.inf), out=self.threshold)

    def bisect(self, keys: np.ndarray, k: int, limit: int) -> np.float32:
        """A similarity that at least k and at most ``limit`` keys reach."""
        words = _ordered(keys)
        low, high, reach, passes = int(words.min()), int(words.max()) + 1, len(keys), 1
        while reach > limit:
            middle = (low + high) // 2
            if low == middle:  # equal similarities: the kernel goes on with their row numbers
                break
            above = int((words >= middle).sum())
            passes += 1
            low, high, reach = (middle, high, above) if above >= k else (low, middle, reach)
        self.events.compared += passes * math.ceil(len(keys) / 32) / self.planned.num_splits
        return np.float32(_from_ordered(low))


def _ordered(x: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _from_ordered(word: int) -> np.float32:
    bits = word ^ 0x7FFFFFFF if word < 0 else word
    return np.array(bits, dtype=np.int32).view(np.float32)[()]


@cache
def simulate(planned: Plan, seed: int = 0) -> Events:
    """A walk over similarities of random directions."""
    rng, walk = np.random.default_rng(seed), Walk(planned)
    for _ in range(-(-planned.span // TILE)):
        walk.take(rng.standard_normal((planned.num_splits, WARP_ROWS, TILE), dtype=np.float32) / math.sqrt(FEATURES))
    return walk.events


@dataclass(frozen=True)
class Parts:
    """Instructions of the pass's parts, for a warp."""

    tile: int  # once a tile, at the most
    copy: int  # a chunk of 128 bytes a row, as the next
    product: int
    turn: int
    compare: float  # 32 keys
    move: float

    def of(self, events: Events, chunks: int) -> float:
        """Instructions of a walk."""
        once = self.tile + chunks * (self.copy + self.product)
        return (
            once * events.tiles + self.turn * events.turns + self.compare * events.compared + self.move * events.moved
        )


def parts(kernel: Kernel) -> Parts:
    """Of the selection by a buffer, by the loops in its machine code."""
    lines = kernel.sass
    place = {int(match[1], 16): i for i, line in enumerate(lines) if (match := re.match(r"\s*/\*([0-9a-f]+)\*/", line))}
    loops = []
    for i, line in enumerate(lines):
        match = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", line)
        if match and (start := place.get(int(match[1], 16), i)) < i:
            loops.append(range(start, i + 1))

    def has(loop: range, opcode: str, times: int = 1) -> bool:
        return sum(re.search(rf"\b{opcode}\b", lines[i]) is not None for i in loop) >= times

    inner = [x for x in loops if not any(y != x and y.start >= x.start and y.stop <= x.stop for y in loops)]
    product = next(x for x in inner if any(product_flop_of(lines[i]) for i in x))
    turn = next(x for x in inner if has(x, "ATOMS"))
    whole = min((x for x in loops if x.start < product.start and x.stop > turn.stop), key=len)
    copies = [x for x in inner if has(x, "LDGSTS") and whole.start < x.start < product.start]
    compare = max(len(x) / 16 for x in inner if has(x, "LDG", 16) and not has(x, "VOTE"))
    move = max(len(x) / 4 for x in inner if has(x, "VOTE") and has(x, "STG"))
    copy = max(copies, key=len)
    once = range(whole.start, turn.start)
    tile = len(once) - sum(len(x) for x in inner if x.start in once)
    return Parts(tile, len(copy), len(product), len(turn), compare, move)


def product_flop_of(line: str) -> int:
    instruction = parse(line)
    return product_flop(instruction)[0] if instruction else 0


@dataclass(frozen=True)
class Estimate:
    """Milliseconds."""

    product: float  # the score product alone, at the data sheet's rate
    written: float  # and its result written in 16 bits
    tensor: float  # the same with warp-level instructions, on the fullest multiprocessor
    issue: float

    @property
    def overlapped(self) -> float:
        return max(self.tensor, self.issue)

    @property
    def serial(self) -> float:
        return self.tensor + self.issue


def estimate(rates: Rates, planned: Plan, events: Events, found: Parts, queries: int, rows: int) -> Estimate:
    chip = rates.chip
    fullest = -(-planned.works // chip.processors)
    flop = 2 * FEATURES * TILE * TILE * events.tiles * fullest
    tensor = flop / (rates.per_clock(rates.tensor) * rates.mma_sync)
    issue = fullest * found.of(events, FEATURES * 2 // 128)
    product = 2 * queries * rows * FEATURES / rates.tensor
    written = max(product, 2 * queries * rows / rates.memory)
    return Estimate(1000 * product, 1000 * written, 1000 * tensor / rates.clock, 1000 * issue / rates.clock)


HEADER = (
    "| chip | N | splits | candidates a row | turns a tile "
    "| product ms | written | overlapped | in series | over the written product |"
)


def main(queries: Sequence[int] = (1024, 16384), rows: int = 1 << 20, k: int = 512) -> None:
    """Estimates, not measurements.

    Args:
        queries: numbers of them, a line each.
        rows: of the bank.
        k: selected rows of a query.
    """
    print(f"ESTIMATES, M = {rows}, D = {FEATURES}, k = {k}, bfloat16; nothing here was measured.\n")
    print(HEADER)
    print(re.sub(r"[^|]+", "---", HEADER))
    for line in lines(queries, rows, k):
        print(line, flush=True)


def lines(sizes: Sequence[int], rows: int, k: int) -> Iterator[str]:
    passes = {kernel.arch: kernel for kernel in kernels() if kernel.name == "buffered<Half>"}
    for rates in RATES.values():
        if (kernel := passes.get(f"sm_{rates.chip.capability}")) is None:
            yield f"(the library was not built for {rates.chip.name}: ACTION_CUDA_ARCHS)"
            continue
        found = parts(kernel)
        for queries in sizes:
            planned = plan(rates.chip.processors, queries, rows, k)
            events = simulate(planned)
            x = estimate(rates, planned, events, found, queries, rows)
            cells = (
                rates.chip.name,
                queries,
                planned.num_splits,
                f"{events.candidates * planned.num_splits:.0f}",
                f"{events.turns / events.tiles:.2f}",
                f"{x.product:.3g}",
                f"{x.written:.3g}",
                f"{x.overlapped:.3g}",
                f"{x.serial:.3g}",
                f"{x.overlapped / x.written:.1f} to {x.serial / x.written:.1f}",
            )
            yield f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    run(main)
