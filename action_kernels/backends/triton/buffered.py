"""The selection by a buffer: for any bank, any k and any labels, at the price of every candidate on the way.

It walks over the bank in the bank's own order, in which later rows lose ties: a row whose similarity only equals the
k-th best so far cannot enter. A block of queries none of which is flagged costs nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gpu import EMPTY, splits
from ..thresholds import Placement
from .launch import float32_precision, kernel, on_device, processors
from .placement import place_of
from .products import dot, load_rows, load_vector
from .rows import Rows
from .selection import LOWEST, append, buffer_shape, clear
from .tiles import Tile

LINES = 128  # queries with a buffer, per multiprocessor: more programs would hardly be resident


@triton.jit
def _placed_rows(rows, place, inside, FEATURES: tl.constexpr, first, WIDTH: tl.constexpr):
    """Features first... of the rows in these places, zeros for those that are not inside."""
    offset = place.to(tl.int64)[:, None] * FEATURES + first + tl.arange(0, WIDTH)[None, :]
    return tl.load(rows + offset, mask=inside[:, None], other=0.0)


@kernel
def _buffered(
    query,
    query_scale,
    bank,
    bank_scale,
    query_labels,
    bank_labels,
    flags,
    keys,
    buffer,
    counts,
    thresholds,
    works,
    num_splits,
    span,
    queries,
    rows,
    line,
    k,
    limit,
    capacity,
    place_tiles,
    place_block,
    LABELLED: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # The buffers are scratch of a program, so a limited number of programs takes all the pieces of work in turn.
    for work in range(tl.program_id(0), works, tl.num_programs(0)):
        split = work % num_splits
        blocks = tl.cdiv(queries, BLOCK_N)
        first = work // num_splits % blocks * BLOCK_N
        group = tl.cast(work // num_splits // blocks, tl.int64)
        q = group * queries
        row = first + tl.arange(0, BLOCK_N)
        wanted = row < queries
        if flags is not None:
            wanted = tl.load(flags + q + row, mask=wanted, other=0) != 0
        if tl.max(wanted.to(tl.int32), 0) > 0:
            q_rows, b_rows = query + q * FEATURES, bank + group * rows * FEATURES
            begin = split * span
            end = tl.minimum(begin + span, rows)
            scale = load_vector(query_scale + q, first, queries, BLOCK_N)[:, None]
            tile = load_rows(q_rows, first, queries, FEATURES, 0, BLOCK_N, WIDTH)
            count = tl.zeros((BLOCK_N,), tl.int32)
            threshold = tl.where(wanted, LOWEST, float("inf"))
            own = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N
            if LABELLED:
                own_label = load_vector(query_labels + q, first, queries, BLOCK_N)
            for start in range(begin, end, BLOCK_M):
                column = start + tl.arange(0, BLOCK_M)
                inside = column < end
                place = place_of(column, place_tiles, place_block)
                s = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
                if FEATURES == WIDTH:
                    b_tile = _placed_rows(b_rows, place, inside, FEATURES, 0, WIDTH)
                    s = dot(tile, tl.trans(b_tile), s, PRECISION)
                else:
                    for feature in range(0, FEATURES, WIDTH):
                        b_tile = _placed_rows(b_rows, place, inside, FEATURES, feature, WIDTH)
                        q_tile = load_rows(q_rows, first, queries, FEATURES, feature, BLOCK_N, WIDTH)
                        s = dot(q_tile, tl.trans(b_tile), s, PRECISION)
                b_scale = tl.load(bank_scale + group * rows + place, mask=inside, other=0.0)[None, :]
                s = tl.where(inside[None, :], s * scale * b_scale, LOWEST)
                better = s > threshold[:, None]
                if LABELLED:
                    label = load_vector(bank_labels + group * rows, start, end, BLOCK_M)[None, :]
                    better = better & (label >= 0) & (label != own_label[:, None])
                if tl.max(tl.max(better.to(tl.int32), 1), 0) > 0:
                    count = append(buffer + own * capacity, count, s, column, better, capacity, BLOCK_N)
                    if tl.max(count, 0) > capacity - BLOCK_M:
                        count, threshold = clear(
                            buffer + own * capacity,
                            counts + own,
                            thresholds + own,
                            count,
                            threshold,
                            buffer + own * capacity,
                            capacity,
                            k,
                            limit,
                            capacity,
                            BLOCK_N,
                        )
            clear(
                buffer + own * capacity,
                counts + own,
                thresholds + own,
                count,
                threshold,
                keys + (q + first) * line + split * k,
                line,
                k,
                k,
                capacity,
                BLOCK_N,
            )


class Geometry:
    """How the work is divided, and how many keys come of it."""

    def __init__(self, groups: int, queries: int, rows: int, k: int, tile: Tile, device: torch.device) -> None:
        blocks = groups * -(-queries // tile.block_n)
        self.num_splits, self.span = splits(processors(device), blocks, rows, tile.block_m)
        self.works = blocks * self.num_splits
        self.programs = min(self.works, max(1, LINES // tile.block_n) * processors(device))
        self.kept = min(k, self.span)
        self.keys = self.num_splits * self.kept  # of a query


def buffered(
    query: Rows,
    bank: Rows,
    tile: Tile,
    k: int,
    query_labels: Tensor | None,
    bank_labels: Tensor | None,
    placement: Placement,
    keys: Tensor | None = None,
    flags: Tensor | None = None,
) -> Tensor:
    """Keys [G, N, line], among which the k largest of a line are the selection.

    Args:
        query: the queries.
        bank: the bank.
        tile: to go on with.
        k: rows to select.
        query_labels: [G, N] int64.
        bank_labels: [G, M] int64, in the bank's own order.
        placement: how the bank's rows are kept.
        keys: where to put them, at least as many as :class:`Geometry` says; the lines of flagged queries are empty.
        flags: [G, N] not 0 for the queries to select for; all of them where it is None.
    """
    groups, queries, features = query.data.shape
    rows, device = bank.data.shape[1], query.data.device
    geometry = Geometry(groups, queries, rows, k, tile, device)
    capacity, limit = buffer_shape(geometry.kept, tile.block_m)
    shape = geometry.programs, tile.block_n
    buffer = torch.empty((*shape, capacity), dtype=torch.int64, device=device)
    counts = torch.empty(shape, dtype=torch.int32, device=device)
    thresholds = torch.empty(shape, dtype=torch.float32, device=device)
    if keys is None:
        keys = torch.full((groups, queries, geometry.keys), EMPTY, dtype=torch.int64, device=device)
    with on_device(query.data):
        _buffered[(geometry.programs,)](
            query.data,
            query.scale,
            bank.data,
            bank.scale,
            query_labels,
            bank_labels,
            flags,
            keys,
            buffer,
            counts,
            thresholds,
            geometry.works,
            geometry.num_splits,
            geometry.span,
            queries,
            rows,
            keys.shape[-1],
            geometry.kept,
            limit,
            capacity,
            *placement,
            LABELLED=bank_labels is not None,
            FEATURES=features,
            BLOCK_N=tile.block_n,
            BLOCK_M=tile.block_m,
            WIDTH=tile.width,
            PRECISION=float32_precision(),
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=True,
        )
    return keys
