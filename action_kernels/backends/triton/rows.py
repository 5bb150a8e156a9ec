"""Preparing rows and finishing gradients: everything that happens once per row, not once per pair.

In: rows become contiguous, of one dtype, padded with zeros to whole feature blocks, and, if normalised, scaled by a
power of two to a length in (128, 256]. That is exact, so that 16-bit rows enter the tensor cores with all their bits
and float16 neither overflows nor underflows; the rest of 1 / |x| is a float32 per row, applied to finished products.
Such rows of bfloat16 become float16, in which a gradient's weight needs one term instead of two. They fit it exactly,
but for elements below 2^-21 of the length: those are rounded by at most 2^-32 of it, less than float32 products are.
Out: partial sums are added in a fixed order, the radial part is removed, and the result divided by the length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gpu import product_dtype
from ..thresholds import AS_THEY_ARE, Placement
from .launch import INTERPRETED, kernel, on_device, power_of_two
from .placement import place_of
from .tiles import width

SMALLEST_NORM = tl.constexpr(1e-12)


class Rows(NamedTuple):
    """What the streaming kernels read: row i stands for ``data[i] * scale[i]``."""

    data: Tensor  # [G, N, padded D], contiguous
    scale: Tensor  # [G, N] float32


def _block(width: int) -> int:
    """Rows a program takes: some thousand elements on a GPU; in the interpreter as many as fit one."""
    return max(1, (1 << 16 if INTERPRETED else 1 << 12) // width)


@triton.jit
def unit_factor(x, AXIS: tl.constexpr):
    """1 / max(|x|, 1e-12) over one axis of float32 rows, and whether the norm counted."""
    huge = tl.max(tl.abs(x), AXIS) > 1e15  # their squares would overflow; those that underflow do not count
    guarded = x * tl.expand_dims(tl.where(huge, 2.0**-80, 1.0), AXIS)
    norm = tl.sqrt_rn(tl.sum(guarded * guarded, AXIS)) * tl.where(huge, 2.0**80, 1.0)
    clamped = norm <= SMALLEST_NORM  # not NaN, which must stay NaN
    one = tl.full(norm.shape, 1.0, tl.float32)
    return tl.div_rn(one, tl.where(clamped, SMALLEST_NORM, norm)), norm > SMALLEST_NORM


@triton.jit
def raw_gradient(grad, x, AXIS: tl.constexpr):
    """Gradient in the rows x from that in x / max(|x|, 1e-12): (g - u <u, g>) / |x|; a clamped norm is a constant."""
    factor, counted = unit_factor(x, AXIS)
    factor = tl.expand_dims(factor, AXIS)
    unit = x * factor
    radial = tl.expand_dims(tl.sum(unit * grad, AXIS), AXIS) * unit
    return (grad - tl.where(tl.expand_dims(counted, AXIS), radial, 0.0)) * factor


@kernel
def _prepare(
    x,
    data,
    scale,
    rows,
    features,
    padded,
    stride_g,
    stride_n,
    stride_d,
    place_tiles,
    place_block,
    NORMALIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    blocks = tl.cdiv(rows, BLOCK_N)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_D)
    inside = (row < rows)[:, None] & (column < features)[None, :]
    offset = group * stride_g + row[:, None] * stride_n + column[None, :].to(tl.int64) * stride_d
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    factor = tl.full((BLOCK_N,), 1.0, tl.float32)
    if NORMALIZE:
        factor, _ = unit_factor(value, 1)
        # 256 times the power of two next below the factor, by its exponent bits; NaN must not become a number.
        power = (factor.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True) * 256.0
        power = tl.where(factor == factor, tl.maximum(power, 2.0**-100), factor)
        value *= power[:, None]
        factor = tl.div_rn(factor, power)
    place = group * rows + place_of(row, place_tiles, place_block)
    written = (row < rows)[:, None] & (column < padded)[None, :]
    tl.store(data + place[:, None] * padded + column[None, :], value.to(data.dtype.element_ty), mask=written)
    tl.store(scale + place, factor, mask=row < rows)


def prepare(x: Tensor, dtype: torch.dtype, block_d: int, normalize: bool, placement: Placement = AS_THEY_ARE) -> Rows:
    """``x`` [G, N, D] as contiguous ``dtype`` rows, D padded to a multiple of ``block_d``, with their scales."""
    groups, rows, features = x.shape
    padded = -(-features // block_d) * block_d
    data = torch.empty((groups, rows, padded), dtype=dtype, device=x.device)
    scale = torch.empty((groups, rows), dtype=torch.float32, device=x.device)
    wide = power_of_two(padded)
    block = _block(wide)
    with on_device(x):
        _prepare[(groups * -(-rows // block),)](
            x,
            data,
            scale,
            rows,
            features,
            padded,
            *x.stride(),
            *placement,
            NORMALIZE=normalize,
            BLOCK_N=block,
            BLOCK_D=wide,
        )
    return Rows(data, scale)


@kernel
def _finish(
    partial,
    factor,
    x,
    out,
    parts,
    rows,
    total,
    features,
    padded,
    constant,
    stride_g,
    stride_n,
    stride_d,
    NORMALIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    blocks = tl.cdiv(rows, BLOCK_N)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_D)
    inside = (row < rows)[:, None] & (column < features)[None, :]
    source = partial + (group * rows + row)[:, None] * padded + column[None, :]
    grad = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for part in range(parts):
        grad += tl.load(source + tl.cast(part, tl.int64) * total * padded, mask=inside, other=0.0)
    grad *= constant
    if factor is not None:
        grad *= tl.load(factor)
    if NORMALIZE:
        offset = group * stride_g + row[:, None] * stride_n + column[None, :].to(tl.int64) * stride_d
        grad = raw_gradient(grad, tl.load(x + offset, mask=inside, other=0.0).to(tl.float32), 1)
    tl.store(out + (group * rows + row)[:, None] * features + column[None, :], grad, mask=inside)


def finish(partial: Tensor, x: Tensor, normalize: bool, constant: float, factor: Tensor | None = None) -> Tensor:
    """Gradient [G, N, D] in the raw rows ``x``: partial sums [parts, G, N, padded D] times ``constant * factor``."""
    parts, groups, rows, padded = partial.shape
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    wide = power_of_two(padded)
    block = _block(wide)
    with on_device(x):
        _finish[(groups * -(-rows // block),)](
            partial,
            factor,
            x,
            out,
            parts,
            rows,
            groups * rows,
            x.shape[2],
            padded,
            constant,
            *x.stride(),
            NORMALIZE=normalize,
            BLOCK_N=block,
            BLOCK_D=wide,
        )
    return out


def rows_dtype(normalize: bool, *tensors: Tensor) -> torch.dtype:
    """dtype of prepared rows."""
    dtype = product_dtype(*tensors)
    return torch.float16 if normalize and dtype == torch.bfloat16 else dtype


def prepare_all(normalize: bool, *tensors: Tensor, placement: Placement = AS_THEY_ARE) -> list[Rows]:
    """All in one dtype for the products; the last of them is the bank, whose rows are placed."""
    dtype = rows_dtype(normalize, *tensors)
    places = [AS_THEY_ARE] * (len(tensors) - 1) + [placement]
    return [
        prepare(x, dtype, width(x.shape[2], dtype), normalize, placed)
        for x, placed in zip(tensors, places, strict=True)
    ]
