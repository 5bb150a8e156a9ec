"""The collectives that a process takes part in, the bytes that it sends, and how long it is in them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from action_kernels.distributed.exchange import ALL_GATHER


class Collective(NamedTuple):
    name: str
    sent: int  # bytes to other processes
    seconds: float  # nothing is computed meanwhile


@contextmanager
def recorded() -> Iterator[list[Collective]]:
    """Those that action_kernels.distributed asks PyTorch for meanwhile, among all processes."""
    calls: list[Collective] = []
    rank, others = dist.get_rank(), dist.get_world_size() - 1
    gather, exchange = getattr(dist, ALL_GATHER), dist.all_to_all_single

    def all_gather(output: Tensor, rows: Tensor, **settings: Any) -> None:
        begin = time.perf_counter()
        gather(output, rows, **settings)
        calls.append(Collective("all_gather", rows.nbytes * others, time.perf_counter() - begin))

    def all_to_all(output: Tensor, rows: Tensor, received: list[int], sent: list[int], **settings: Any) -> None:
        begin = time.perf_counter()
        exchange(output, rows, received, sent, **settings)
        bytes_sent = (sum(sent) - sent[rank]) * rows.itemsize
        calls.append(Collective("all_to_all", bytes_sent, time.perf_counter() - begin))

    setattr(dist, ALL_GATHER, all_gather)
    dist.all_to_all_single = all_to_all
    try:
        yield calls
    finally:
        setattr(dist, ALL_GATHER, gather)
        dist.all_to_all_single = exchange
