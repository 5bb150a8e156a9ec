"""Time and peak memory of a program, from the same set-up."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from .rates import wait

PASSES = ("forward", "backward", "both")
MOST_ROUNDS = 300
SHORT = 100.0  # milliseconds, below which a program runs again
AGAIN = 4  # times

X = TypeVar("X")
Programs = dict[str, Callable[[X], tuple[Tensor, ...]]]


class Times(NamedTuple):
    """Milliseconds: median with 20 % and 80 % quantiles."""

    median: float
    low: float
    high: float


def times(
    programs: Programs[X], inputs: X, leaves: Sequence[Tensor], device: str, rounds: int, seconds: float
) -> dict[tuple[str, str], Times]:
    """Times by (program, pass).

    The programs run in turn, so that a noisy machine disturbs all of them alike: at least ``rounds`` times each, and
    more until ``seconds`` have passed. A first round (compilation, caches, first pages) does not count, nor does a
    second where it costs little. A short program runs some more times in a row, and these count: what the one before it
    leaves of caches and of the allocator's pages would be a good part of the first, and beside long ones there are few
    rounds.
    """
    samples: dict[tuple[str, str], list[float]] = {}
    begin, counted = time.perf_counter(), -2
    while counted < rounds or (counted < MOST_ROUNDS and time.perf_counter() - begin < seconds):
        for name, program in programs.items():
            runs = [_spans(program, inputs, leaves, device)]
            if sum(runs[0][:2]) < SHORT:
                runs = [_spans(program, inputs, leaves, device) for _ in range(AGAIN)]
            if counted >= 0:
                for spans in runs:
                    for part, span in zip(PASSES, spans, strict=False):
                        samples.setdefault((name, part), []).append(span)
        counted += 1
        if counted == -1 and time.perf_counter() - begin > seconds:
            counted = 0
        if counted == 0:
            begin = time.perf_counter()
    return {key: quantiles(values) for key, values in samples.items()}


def _spans(
    program: Callable[[X], tuple[Tensor, ...]], inputs: X, leaves: Sequence[Tensor], device: str
) -> tuple[float, ...]:
    """Milliseconds of forward, backward and both; of forward alone where nothing is differentiable."""
    for leaf in leaves:
        leaf.grad = None
    wait(device)
    start = time.perf_counter()
    results = program(inputs)
    wait(device)
    middle = time.perf_counter()
    if not results[0].requires_grad:
        return (1000 * (middle - start),)
    results[0].backward()
    wait(device)
    end = time.perf_counter()
    return 1000 * (middle - start), 1000 * (end - middle), 1000 * (end - start)


def quantiles(values: Sequence[float]) -> Times:
    if len(values) < 2:
        return Times(values[0], values[0], values[0])
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return Times(statistics.median(values), fifths[0], fifths[-1])


def peak_memory(program: Callable[[X], tuple[Tensor, ...]], inputs: X, leaves: Sequence[Tensor], device: str) -> float:
    """MiB that forward and backward reach above inputs, results and gradients; NaN where it cannot be measured."""
    for leaf in leaves:
        leaf.grad = None
    meter = peak_meter(device)
    results = program(inputs)
    if results[0].requires_grad:
        results[0].backward()
    wait(device)
    return max(0.0, meter.bytes() - size([*results, *(leaf.grad for leaf in leaves)])) / 2**20


def size(tensors: Iterable[Tensor | None]) -> int:
    """Bytes."""
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


class PeakMeter(Protocol):
    def bytes(self) -> float:
        """The most that has been held at a time since the meter was made, above what was held then."""
        ...


def peak_meter(device: str) -> PeakMeter:
    return _Cuda() if device == "cuda" else _Resident()


class _Cuda:
    def __init__(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._start = torch.cuda.memory_allocated()

    def bytes(self) -> float:
        return torch.cuda.max_memory_allocated() - self._start


class _Resident:
    """High-water mark of the process's resident memory (Linux).

    Freed memory goes back to the system first, so that what is taken anew is seen; then the mark is lowered to the
    present size.
    """

    def __init__(self) -> None:
        gc.collect()
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
        self._start = math.nan
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._start = self._mark()
        except OSError as error:
            print(f"no peak memory: {error}")

    @staticmethod
    def _mark() -> float:
        status = Path("/proc/self/status").read_text()
        return 1024.0 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])

    def bytes(self) -> float:
        return math.nan if math.isnan(self._start) else self._mark() - self._start
