"""Preparing rows and finishing gradients: what happens once per row, not once per pair."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..gpu import product_dtype, tf32_allowed
from .library import bind
from .plan import TILE, tiles

_PART = 32  # bytes to which rows are padded


class PrepareRowsParams(NamedTuple):
    """As ``csrc/cuda/rows.cu`` has them."""

    x: Tensor
    normalize: bool
    tf32: bool
    data: Tensor
    scale: Tensor
    inverse: Tensor | None


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


class IndexedQueries(NamedTuple):
    """Contiguous float32 rows that are compared with indexed ones: row i stands for ``data[i] * scale[i]``."""

    data: Tensor  # [G, N, padded D]
    scale: Tensor  # [G, N] float32
    inverse: Tensor  # [G, N] 1 / length, negative where that did not count


def prepare_all(normalize: bool, *tensors: Tensor) -> tuple[list[Rows], bool]:
    """All in one dtype for the products, and whether that is tf32."""
    dtype = product_dtype(*tensors)
    tf32 = dtype == torch.float32 and tf32_allowed()
    return [_prepare(x, dtype, normalize, tf32) for x in tensors], tf32


def _prepare(x: Tensor, dtype: torch.dtype, normalize: bool, tf32: bool) -> Rows:
    groups, rows, features = x.shape
    step = _PART // dtype.itemsize
    data = torch.empty((groups, rows, -(-features // step) * step), dtype=dtype, device=x.device)
    scale = torch.empty((groups, tiles(rows) * TILE), dtype=torch.float32, device=x.device)
    _prepare_rows(PrepareRowsParams(x=x, normalize=normalize, tf32=tf32, data=data, scale=scale, inverse=None), x)
    return Rows(data, scale)


def prepare_queries(x: Tensor, normalize: bool) -> IndexedQueries:
    """Rows padded to four features."""
    groups, rows, features = x.shape
    data = torch.empty((groups, rows, -(-features // 4) * 4), dtype=torch.float32, device=x.device)
    scale, inverse = torch.empty((2, groups, rows), dtype=torch.float32, device=x.device)
    _prepare_rows(PrepareRowsParams(x=x, normalize=normalize, tf32=False, data=data, scale=scale, inverse=inverse), x)
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
