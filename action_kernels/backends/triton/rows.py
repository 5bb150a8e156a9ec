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
from .labels import narrowed
from .launch import INTERPRETED, kernel, on_device, power_of_two
from .placement import place_of
from .tiles import width

SMALLEST_NORM = tl.constexpr(1e-12)


class Rows(NamedTuple):
    """What the streaming kernels read: row i stands for ``data[i] * scale[i]``."""

    data: Tensor  # [G, N, padded D], contiguous
    scale: Tensor  # [G, N] float32
    labels: Tensor | None = None  # [G, N] float32, as passes over a bank compare them
    largest: Tensor | None = None  # of rows that keep their length: [G, N] largest element, or of a bank's every block


def rows_of_program(width: int, warps: int = 4) -> int:
    """Some thousand elements on a GPU; in the interpreter as many as fit one."""
    return max(1, (1 << 16 if INTERPRETED else warps << 10) // width)


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


@triton.jit
def _prepare_block(
    block,
    x,
    stride_g,
    stride_n,
    stride_d,
    labels,
    data,
    scale,
    narrow,
    largest,
    rows,
    features,
    padded,
    place_tiles,
    place_block,
    IN_BANK: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    blocks = tl.cdiv(rows, BLOCK_N)
    group = (block // blocks).to(tl.int64)
    row = (block % blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_D)
    inside = (row < rows)[:, None] & (column < features)[None, :]
    offset = group * stride_g + row[:, None] * stride_n + column[None, :].to(tl.int64) * stride_d
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    factor = tl.full((BLOCK_N,), 1.0, tl.float32)
    if NORMALIZE:
        factor, _ = unit_factor(value, 1)
        # The power of two next below 256 times the factor, by its exponent bits; NaN must not become a number. A norm
        # is at most 2^128, or infinite.
        power = ((256.0 * factor).to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        power = tl.where(factor == factor, tl.maximum(power, 2.0**-120), factor)
        value *= power[:, None]
        factor = tl.div_rn(factor, power)
    place = row
    if IN_BANK:
        place = place_of(row, place_tiles, place_block)
    place += group * rows
    written = (row < rows)[:, None] & (column < padded)[None, :]
    tl.store(data + place[:, None] * padded + column[None, :], value.to(data.dtype.element_ty), mask=written)
    tl.store(scale + place, factor, mask=row < rows)
    if largest is not None:
        # A row with NaN is never selected: as a query it has no length, in the bank it takes part in none.
        number = tl.max((value != value).to(tl.int32), 1) == 0
        reached = tl.max(tl.where(value == value, tl.abs(value), 0.0), 1)
        if IN_BANK:
            tl.store(largest + block, tl.max(tl.where(number, reached, 0.0), 0))
        else:
            tl.store(largest + place, tl.where(number, reached, float("nan")), mask=row < rows)
    if labels is not None:
        label = tl.load(labels + group * rows + row, mask=row < rows, other=-1)
        tl.store(narrow + place, narrowed(label, IN_BANK), mask=row < rows)


@kernel
def _prepare(
    student,
    student_g,
    student_n,
    student_d,
    query_labels,
    student_data,
    student_scale,
    student_labels,
    student_largest,
    teacher,
    teacher_g,
    teacher_n,
    teacher_d,
    teacher_data,
    teacher_scale,
    bank,
    bank_g,
    bank_n,
    bank_d,
    labels,
    bank_data,
    bank_scale,
    bank_labels,
    bank_largest,
    queries,
    rows,
    features,
    padded,
    place_tiles,
    place_block,
    student_blocks,
    query_blocks,
    NORMALIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    block = tl.program_id(0)
    if block < student_blocks:
        _prepare_block(
            block,
            student,
            student_g,
            student_n,
            student_d,
            query_labels,
            student_data,
            student_scale,
            student_labels,
            student_largest,
            queries,
            features,
            padded,
            place_tiles,
            place_block,
            False,
            NORMALIZE,
            BLOCK_N,
            BLOCK_D,
        )
    elif block < query_blocks:
        _prepare_block(
            block - student_blocks,
            teacher,
            teacher_g,
            teacher_n,
            teacher_d,
            None,
            teacher_data,
            teacher_scale,
            None,
            None,
            queries,
            features,
            padded,
            place_tiles,
            place_block,
            False,
            NORMALIZE,
            BLOCK_N,
            BLOCK_D,
        )
    else:
        _prepare_block(
            block - query_blocks,
            bank,
            bank_g,
            bank_n,
            bank_d,
            labels,
            bank_data,
            bank_scale,
            bank_labels,
            bank_largest,
            rows,
            features,
            padded,
            place_tiles,
            place_block,
            True,
            NORMALIZE,
            BLOCK_N,
            BLOCK_D,
        )


def rows_dtype(normalize: bool, *tensors: Tensor) -> torch.dtype:
    """dtype of prepared rows."""
    dtype = product_dtype(*tensors)
    return torch.float16 if normalize and dtype == torch.bfloat16 else dtype


def prepare_all(
    normalize: bool,
    *tensors: Tensor,
    placement: Placement = AS_THEY_ARE,
    labels: tuple[Tensor, Tensor] | None = None,
    measured: bool = False,
) -> list[Rows]:
    """All in one dtype for the products, features padded to whole blocks.

    Args:
        normalize: whether rows are brought to unit length.
        tensors: queries [G, N, D], once or twice, and the bank [G, M, D].
        placement: how the bank's rows are kept.
        labels: [G, N] of the queries and [G, M] of the bank, int64 and contiguous, for passes that compare them.
        measured: whether the largest elements of the first queries and of the bank are taken, for a selection.
    """
    student, teacher, bank = tensors[0], tensors[-2], tensors[-1]
    dtype = rows_dtype(normalize, *tensors)
    groups, queries, features = student.shape
    padded = -(-features // width(features, dtype)) * width(features, dtype)
    prepared = [_empty_rows(x, padded, dtype) for x in tensors]
    query_labels = bank_labels = None
    if labels is not None:
        query_labels, bank_labels = labels
        prepared[0], prepared[-1] = (x._replace(labels=torch.empty_like(x.scale)) for x in (prepared[0], prepared[-1]))
    wide = power_of_two(padded)
    block = rows_of_program(wide)
    blocks = groups * -(-queries // block)
    query_blocks = blocks * (len(tensors) - 1)
    bank_blocks = -(-bank.shape[1] // block)
    if measured:
        prepared[0] = prepared[0]._replace(largest=torch.empty_like(prepared[0].scale))
        largest = torch.empty((groups, bank_blocks), dtype=torch.float32, device=bank.device)
        prepared[-1] = prepared[-1]._replace(largest=largest)
    with on_device(student):
        _prepare[(query_blocks + groups * bank_blocks,)](
            student,
            *student.stride(),
            query_labels,
            *prepared[0],
            teacher,
            *teacher.stride(),
            *prepared[-2][:2],
            bank,
            *bank.stride(),
            bank_labels,
            *prepared[-1],
            queries,
            bank.shape[1],
            features,
            padded,
            *placement,
            blocks,
            query_blocks,
            NORMALIZE=normalize,
            BLOCK_N=block,
            BLOCK_D=wide,
        )
    return prepared


def _empty_rows(x: Tensor, padded: int, dtype: torch.dtype) -> Rows:
    data = torch.empty((*x.shape[:2], padded), dtype=dtype, device=x.device)
    return Rows(data, torch.empty(x.shape[:2], dtype=torch.float32, device=x.device))


@triton.jit
def finish_block(
    block,
    partial,
    constant,
    factor,
    x,
    stride_g,
    stride_n,
    stride_d,
    out,
    parts,
    rows,
    total,
    features,
    padded,
    NORMALIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A block of rows x: the partial sums together, times constants, as the gradient in the raw rows."""
    blocks = tl.cdiv(rows, BLOCK_N)
    group = (block // blocks).to(tl.int64)
    row = (block % blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
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
