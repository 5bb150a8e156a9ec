"""Preparing rows: what happens once per row, not once per pair."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..gpu import product_dtype, tf32_allowed
from ..thresholds import AS_THEY_ARE, Placement
from .library import bind
from .plan import TILE, tiles

_PART = 32  # bytes to which rows are padded


class PrepareParams(NamedTuple):
    """As ``csrc/cuda/prepare.cu`` has them."""

    query: Tensor
    query_data: Tensor
    query_scale: Tensor
    query_inverse: Tensor | None
    second: Tensor | None
    second_data: Tensor | None
    second_scale: Tensor | None
    second_inverse: Tensor | None
    bank: Tensor | None
    bank_data: Tensor | None
    bank_scale: Tensor | None
    labels: Tensor | None
    narrow_labels: Tensor | None
    place_tiles: int
    place_block: int
    normalize: bool
    tf32: bool
    floors: Tensor | None
    arrived: Tensor | None
    longest: Tensor | None
    query_largest: Tensor | None
    bank_largest: Tensor | None


_prepare = bind("prepare", PrepareParams)


class Rows(NamedTuple):
    """Contiguous rows for the products of tiles: row i stands for ``data[i] * scale[i]``."""

    data: Tensor  # [G, N, padded D]
    scale: Tensor  # [G, N padded to whole tiles] float32
    labels: Tensor | None = None  # the same, as passes over a bank compare them


class Lengths(NamedTuple):
    """How long rows are that are not brought to unit length."""

    query: Tensor  # [G, N] the largest magnitude of every row, NaN for one with NaN
    bank: Tensor  # [G, M]
    longest: Tensor  # [G] int32 bits of the largest in the bank

    @classmethod
    def empty(cls, groups: int, queries: int, rows: int, device: torch.device) -> Lengths:
        """Memory for them."""
        query, bank = (torch.empty((groups, n), dtype=torch.float32, device=device) for n in (queries, rows))
        return cls(query, bank, torch.empty(groups, dtype=torch.int32, device=device))


class IndexedQueries(NamedTuple):
    """Contiguous float32 rows that are compared with indexed ones: row i stands for ``data[i] * scale[i]``."""

    data: Tensor  # [G, N, padded D]
    scale: Tensor  # [G, N] float32
    inverse: Tensor  # [G, N] 1 / length, negative where that did not count


def prepare_all(
    normalize: bool,
    *tensors: Tensor,
    placement: Placement = AS_THEY_ARE,
    labels: Tensor | None = None,
    floors: Tensor | None = None,
    arrived: Tensor | None = None,
    lengths: Lengths | None = None,
) -> tuple[list[Rows], bool]:
    """All in one dtype for the products, and whether that is tf32.

    Args:
        normalize: whether rows are brought to unit length.
        tensors: queries [G, N, D], once or twice, and the bank [G, M, D].
        placement: how the bank's rows are kept.
        labels: [G, M] int64 of the bank's rows, for passes that compare them.
        floors: [G, N, num_splits] int32 that are set for a selection by a buffer.
        arrived: [G, tiles of queries] int32, likewise.
        lengths: of queries and bank, which are measured, but for the longest.
    """
    dtype = product_dtype(*tensors)
    tf32 = dtype == torch.float32 and tf32_allowed()
    rows = [_empty_rows(x, dtype) for x in tensors]
    if labels is not None:
        rows[-1] = rows[-1]._replace(labels=torch.empty_like(rows[-1].scale))
    query, second, bank = rows[0], rows[1] if len(rows) > 2 else None, rows[-1]
    _prepare(
        PrepareParams(
            query=tensors[0],
            query_data=query.data,
            query_scale=query.scale,
            query_inverse=None,
            second=second and tensors[1],
            second_data=second and second.data,
            second_scale=second and second.scale,
            second_inverse=None,
            bank=tensors[-1],
            bank_data=bank.data,
            bank_scale=bank.scale,
            labels=labels,
            narrow_labels=bank.labels,
            place_tiles=placement.tiles,
            place_block=placement.block,
            normalize=normalize,
            tf32=tf32,
            floors=floors,
            arrived=arrived,
            longest=lengths and lengths.longest,
            query_largest=lengths and lengths.query,
            bank_largest=lengths and lengths.bank,
        ),
        tensors[0],
    )
    return rows, tf32


def _empty_rows(x: Tensor, dtype: torch.dtype) -> Rows:
    groups, rows, features = x.shape
    step = _PART // dtype.itemsize
    data = torch.empty((groups, rows, -(-features // step) * step), dtype=dtype, device=x.device)
    return Rows(data, torch.empty((groups, tiles(rows) * TILE), dtype=torch.float32, device=x.device))


def prepare_queries(normalize: bool, query: Tensor, positive: Tensor | None = None) -> list[IndexedQueries]:
    """Rows [G, N, D] padded to four features; the positives as well, where there are some."""
    rows = [_empty_queries(query)] if positive is None else [_empty_queries(query), _empty_queries(positive)]
    second = None if positive is None else rows[1]
    _prepare(
        PrepareParams(
            query=query,
            query_data=rows[0].data,
            query_scale=rows[0].scale,
            query_inverse=rows[0].inverse,
            second=positive,
            second_data=second and second.data,
            second_scale=second and second.scale,
            second_inverse=second and second.inverse,
            bank=None,
            bank_data=None,
            bank_scale=None,
            labels=None,
            narrow_labels=None,
            place_tiles=1,
            place_block=1,
            normalize=normalize,
            tf32=False,
            floors=None,
            arrived=None,
            longest=None,
            query_largest=None,
            bank_largest=None,
        ),
        query,
    )
    return rows


def _empty_queries(x: Tensor) -> IndexedQueries:
    groups, rows, features = x.shape
    data = torch.empty((groups, rows, -(-features // 4) * 4), dtype=torch.float32, device=x.device)
    return IndexedQueries(data, *torch.empty((2, groups, rows), dtype=torch.float32, device=x.device))


def empty_gradient(x: Tensor, wanted: bool) -> Tensor:
    """Memory for the gradient of ``x``; [0] where it is not wanted."""
    return torch.empty(x.shape if wanted else 0, dtype=torch.float32, device=x.device)
