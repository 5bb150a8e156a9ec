"""Preparing rows and finishing gradients: what happens once per row, not once per pair."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..gpu import product_dtype, tf32_allowed
from ..thresholds import AS_THEY_ARE, Placement
from .library import bind
from .plan import TILE, tiles

_PART = 32  # bytes to which rows are padded


class PrepareRowsParams(NamedTuple):
    """As ``csrc/cuda/rows.cu`` has them."""

    x: Tensor
    normalize: bool
    tf32: bool
    place_tiles: int
    place_block: int
    labels: Tensor | None
    data: Tensor
    scale: Tensor
    inverse: Tensor | None
    narrow_labels: Tensor | None


class FinishGradientParams(NamedTuple):
    """As ``csrc/cuda/rows.cu`` has them."""

    partial: Tensor
    factor: Tensor | None
    constant: float
    x: Tensor
    normalize: bool
    grad: Tensor


_prepare_rows = bind("prepare_rows", PrepareRowsParams)
_finish_gradient = bind("finish_gradient", FinishGradientParams)


class Rows(NamedTuple):
    """Contiguous rows for the products of tiles: row i stands for ``data[i] * scale[i]``."""

    data: Tensor  # [G, N, padded D]
    scale: Tensor  # [G, N padded to whole tiles] float32
    labels: Tensor | None = None  # the same, as passes over a bank compare them


class IndexedQueries(NamedTuple):
    """Contiguous float32 rows that are compared with indexed ones: row i stands for ``data[i] * scale[i]``."""

    data: Tensor  # [G, N, padded D]
    scale: Tensor  # [G, N] float32
    inverse: Tensor  # [G, N] 1 / length, negative where that did not count


def prepare_all(
    normalize: bool, *tensors: Tensor, placement: Placement = AS_THEY_ARE, labels: Tensor | None = None
) -> tuple[list[Rows], bool]:
    """All in one dtype for the products, and whether that is tf32.

    Args:
        normalize: whether rows are brought to unit length.
        tensors: rows [G, any number, D]; the last one is the bank.
        placement: how the bank's rows are kept.
        labels: [G, M] int64 of the bank's rows, for passes that compare them.
    """
    dtype = product_dtype(*tensors)
    tf32 = dtype == torch.float32 and tf32_allowed()
    rows = [_prepare(x, dtype, normalize, tf32) for x in tensors[:-1]]
    return [*rows, _prepare(tensors[-1], dtype, normalize, tf32, placement, labels)], tf32


def _prepare(
    x: Tensor,
    dtype: torch.dtype,
    normalize: bool,
    tf32: bool,
    placement: Placement = AS_THEY_ARE,
    labels: Tensor | None = None,
) -> Rows:
    groups, rows, features = x.shape
    step = _PART // dtype.itemsize
    data = torch.empty((groups, rows, -(-features // step) * step), dtype=dtype, device=x.device)
    scale = torch.empty((groups, tiles(rows) * TILE), dtype=torch.float32, device=x.device)
    narrow_labels = None if labels is None else torch.empty_like(scale)
    _prepare_rows(
        PrepareRowsParams(
            x=x,
            normalize=normalize,
            tf32=tf32,
            place_tiles=placement.tiles,
            place_block=placement.block,
            labels=labels,
            data=data,
            scale=scale,
            inverse=None,
            narrow_labels=narrow_labels,
        ),
        x,
    )
    return Rows(data, scale, narrow_labels)


def prepare_queries(x: Tensor, normalize: bool) -> IndexedQueries:
    """Rows padded to four features."""
    groups, rows, features = x.shape
    data = torch.empty((groups, rows, -(-features // 4) * 4), dtype=torch.float32, device=x.device)
    scale, inverse = torch.empty((2, groups, rows), dtype=torch.float32, device=x.device)
    _prepare_rows(
        PrepareRowsParams(
            x=x,
            normalize=normalize,
            tf32=False,
            place_tiles=1,
            place_block=1,
            labels=None,
            data=data,
            scale=scale,
            inverse=inverse,
            narrow_labels=None,
        ),
        x,
    )
    return IndexedQueries(data, scale, inverse)


def finish_gradient(
    partial: Tensor, raw: Tensor, normalize: bool, constant: float, factor: Tensor | None = None
) -> Tensor:
    """Gradient in the raw rows: partial sums [parts, G, N, padded D] times ``constant * factor``."""
    grad = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
    _finish_gradient(
        FinishGradientParams(partial=partial, factor=factor, constant=constant, x=raw, normalize=normalize, grad=grad),
        raw,
    )
    return grad


def empty_gradient(x: Tensor, wanted: bool) -> Tensor:
    """Memory for the gradient of ``x``; [0] where it is not wanted."""
    return torch.empty(x.shape if wanted else 0, dtype=torch.float32, device=x.device)
