"""The selection by a buffer: for any bank, any k and any labels, at the price of every candidate on the way."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..thresholds import Placement
from .library import bind
from .plan import TILE, Plan
from .rows import Rows


class BufferedParams(NamedTuple):
    """As ``csrc/cuda/buffered.cu`` has them."""

    query: Tensor
    query_scale: Tensor
    bank: Tensor
    bank_scale: Tensor
    tf32: bool
    place_tiles: int
    place_block: int
    num_splits: int
    span: int
    query_labels: Tensor | None
    bank_labels: Tensor | None
    found: Tensor | None
    kept: int
    limit: int
    quota: int
    buffer: Tensor
    floors: Tensor | None
    keys: Tensor
    arrived: Tensor | None
    similarity: Tensor | None
    index: Tensor | None  # type: ignore[assignment]  # hides tuple.index


_buffered = bind("buffered", BufferedParams)


def buffered(
    query: Rows,
    bank: Rows,
    tf32: bool,
    planned: Plan,
    query_labels: Tensor | None,
    bank_labels: Tensor | None,
    placement: Placement,
    floors: Tensor | None,
    keys: Tensor,
    arrived: Tensor | None,
    similarity: Tensor,
    index: Tensor,
    found: Tensor | None,
) -> None:
    """Select for the queries that limits did not serve; or leave the keys of all of them.

    Args:
        query: the queries.
        bank: the bank.
        tf32: whether float32 rows have been rounded to it.
        planned: how the bank is divided.
        query_labels: [G, N] int64.
        bank_labels: [G, M] int64, in the bank's own order.
        placement: how the bank's rows are kept.
        floors: [G, N, splits] int32, all the lowest; None with one split.
        keys: [G, N, line], of which the first of a line come from the buffer, where it has selected.
        arrived: [G, tiles of queries] int32 zeros, with ``found``.
        similarity: [G, N, k] gets those of the queries to select for, with ``found``.
        index: [G, N, k], likewise, their rows.
        found: [G, N] negative for the queries to select for; all of them where it is None.
    """
    device = query.data.device
    buffer = torch.empty((planned.running, TILE, planned.capacity), dtype=torch.int64, device=device)
    _buffered(
        BufferedParams(
            query=query.data,
            query_scale=query.scale,
            bank=bank.data,
            bank_scale=bank.scale,
            tf32=tf32,
            place_tiles=placement.tiles,
            place_block=placement.block,
            num_splits=planned.num_splits,
            span=planned.span,
            query_labels=query_labels,
            bank_labels=bank_labels,
            found=found,
            kept=planned.kept,
            limit=planned.limit,
            quota=planned.quota,
            buffer=buffer,
            floors=floors,
            keys=keys,
            arrived=arrived,
            similarity=None if found is None else similarity,
            index=None if found is None else index,
        ),
        query.data,
    )
