"""Queries that visit the parts of a divided bank, so many at a time, and bring home what they have found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .exchange import exchange, gather

CHUNK = 8192
"""Queries of all processes together that travel at once."""


class Trip(NamedTuple):
    """Some queries of every process: the same steps on each of them, whether it has any or not."""

    own: slice  # which of this process
    counts: Sequence[int]  # how many of each
    rank: int
    group: dist.ProcessGroup | None

    def out(self, *columns: Tensor) -> list[Tensor]:
        """From columns of all queries of this process: those of this trip's queries, of every process in turn."""
        return gather([x[self.own] for x in columns], self.counts, self.group)

    def home(self, *columns: Tensor) -> list[Tensor]:
        """From columns of every visiting query: those of this process's own, [parts of the bank, own count, ...]."""
        parts = len(self.counts)
        count = self.counts[self.rank]
        found = exchange(columns, self.counts, [count] * parts, self.group)
        return [x.view(parts, count, *x.shape[1:]) for x in found]


def trips(counts: Sequence[int], chunk: int, group: dist.ProcessGroup | None) -> Iterator[Trip]:
    """All queries, of each process as many at a time; ``counts`` are those of every process."""
    rank, at_once = dist.get_rank(group), max(1, chunk // len(counts))
    for start in range(0, max(counts), at_once):
        yield Trip(
            slice(start, start + at_once), [min(max(count - start, 0), at_once) for count in counts], rank, group
        )


def summed(parts: Tensor) -> Tensor:
    """The sum of [parts, ...] in the order of the ranks, for the same bits every time, and in float64."""
    total = torch.zeros(parts.shape[1:], dtype=torch.float64, device=parts.device)
    for part in parts:
        total += part
    return total.to(parts.dtype)
