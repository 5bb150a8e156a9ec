"""The collectives that a process takes part in, and the bytes that it sends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from action_kernels.distributed.exchange import ALL_GATHER


class Collective(NamedTuple):
    name: str
    sent: int  # bytes to other processes


@contextmanager
def recorded() -> Iterator[list[Collective]]:
    """Those that action_kernels.distributed asks PyTorch for meanwhile, among all processes."""
    calls: list[Collective] = []
    rank, others = dist.get_rank(), dist.get_world_size() - 1
    gather, exchange = getattr(dist, ALL_GATHER), dist.all_to_all_single

    def all_gather(output: Tensor, rows: Tensor, **settings: Any) -> None:
        calls.append(Collective("all_gather", rows.nbytes * others))
        gather(output, rows, **settings)

    def all_to_all(output: Tensor, rows: Tensor, received: list[int], sent: list[int], **settings: Any) -> None:
        calls.append(Collective("all_to_all", (sum(sent) - sent[rank]) * rows.itemsize))
        exchange(output, rows, received, sent, **settings)

    setattr(dist, ALL_GATHER, all_gather)
    dist.all_to_all_single = all_to_all
    try:
        yield calls
    finally:
        setattr(dist, ALL_GATHER, gather)
        dist.all_to_all_single = exchange
