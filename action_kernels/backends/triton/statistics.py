"""Between the passes, a few floats per query: sums become log-sum-exps, and these become what a gradient reads.

Sums and centers are of products with unit bank rows, that is, similarities over the query's scale. Temperatures come
as reciprocals in two floats: Triton passes scalars as float32, and a log-sum-exp needs more bits.
"""

from __future__ import annotations

import ctypes
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import INTERPRETED, LOG2E, kernel, on_device

_LOG2E = tl.constexpr(LOG2E)
_LN2 = tl.constexpr(math.log(2))
BLOCK = 1 << 14 if INTERPRETED else 128  # queries of a program
_TERMS_BLOCK = 1 << 14 if INTERPRETED else 1024  # likewise; each program looks at all queries


@triton.jit
def whole_reciprocal(high, low):
    """A :func:`reciprocal` in float64."""
    return tl.cast(high, tl.float64) + tl.cast(low, tl.float64)


@triton.jit
def _inverse(scale, high, low):
    """What a product is multiplied by to become a logit, in float64: the query's scale over the temperature."""
    return whole_reciprocal(high, low) * scale.to(tl.float64)


@triton.jit
def center_of(whole, inverse):
    """A logit in float64 as a product near it and a rest: log2 p = (product - center) inverse log2(e) - rest."""
    center = (whole / inverse).to(tl.float32)
    return center, ((whole - center.to(tl.float64) * inverse) * _LOG2E).to(tl.float32)


@triton.jit
def _center(whole, row, inside, total, centers, inverse):
    """The same, a line each of `centers`; returns the product."""
    center, rest = center_of(whole, inverse)
    tl.store(centers + row, center, mask=inside)
    tl.store(centers + total + row, rest, mask=inside)
    return center


@triton.jit
def merge_pair(
    block,
    sums,
    student_scale,
    teacher_scale,
    kl,
    statistics,
    centers,
    num_splits,
    total,
    student_high,
    student_low,
    teacher_high,
    teacher_low,
    BLOCK: tl.constexpr,
):
    """A block of queries: the sums of two softmaxes over the splits, put together; the rest where it is wanted."""
    row = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < total
    step = tl.cast(num_splits, tl.int64) * total
    s_max = tl.full((BLOCK,), float("-inf"), tl.float32)
    t_max = s_max
    there = tl.zeros((BLOCK,), tl.float32)  # the student's similarity where the teacher's is largest
    for split in range(num_splits):
        place = sums + tl.cast(split, tl.int64) * total + row
        s_max = tl.maximum(s_max, tl.load(place, mask=inside, other=0.0))
        t_part = tl.load(place + 2 * step, mask=inside, other=0.0)
        there = tl.where(t_part > t_max, tl.load(place + 5 * step, mask=inside, other=0.0), there)
        t_max = tl.maximum(t_max, t_part)
    s_sum = tl.zeros((BLOCK,), tl.float32)
    t_sum = tl.zeros((BLOCK,), tl.float32)
    gap = tl.zeros((BLOCK,), tl.float32)
    s_scale = tl.load(student_scale + row, mask=inside, other=0.0)
    t_scale = tl.load(teacher_scale + row, mask=inside, other=0.0)
    s_factor, t_factor = s_scale * (student_high * _LOG2E), t_scale * (teacher_high * _LOG2E)
    for split in range(num_splits):
        place = sums + tl.cast(split, tl.int64) * total + row
        s_shift = (tl.load(place, mask=inside, other=0.0) - s_max) * s_factor
        t_shift = (tl.load(place + 2 * step, mask=inside, other=0.0) - t_max) * t_factor
        t_decay, t_part = tl.exp2(t_shift), tl.load(place + 3 * step, mask=inside, other=1.0)
        s_sum += tl.exp2(s_shift) * tl.load(place + step, mask=inside, other=1.0)
        t_sum += t_decay * t_part
        there_shift = (tl.load(place + 5 * step, mask=inside, other=0.0) - there) * s_factor
        # As in the pass: when the references move, so does every difference in the gap.
        moved = tl.load(place + 4 * step, mask=inside, other=0.0) + t_part * (t_shift - there_shift)
        gap += tl.where(t_decay == 0.0, 0.0, t_decay * moved)
    s_log, t_log = tl.log(s_sum.to(tl.float64)), tl.log(t_sum.to(tl.float64))
    student_inverse = _inverse(s_scale, student_high, student_low)
    teacher_inverse = _inverse(t_scale, teacher_high, teacher_low)
    s_top, t_top = s_max.to(tl.float64) * student_inverse, t_max.to(tl.float64) * teacher_inverse
    s_there = there.to(tl.float64) * student_inverse
    divergence = gap.to(tl.float64) * _LN2 / t_sum.to(tl.float64)
    tl.store(kl + row, (divergence + (s_top - s_there) + (s_log - t_log)).to(tl.float32), mask=inside)
    lines = tl.cast(total, tl.int64)
    if statistics is not None:
        tl.store(statistics + row, s_top + s_log, mask=inside)
        tl.store(statistics + lines + row, t_top + t_log, mask=inside)
        tl.store(statistics + 2 * lines + row, divergence + (t_top - s_there), mask=inside)
    if centers is not None:
        _center(s_top + s_log, row, inside, lines, centers, student_inverse)
        _center(t_top + t_log, row, inside, lines, centers + 2 * lines, teacher_inverse)


@triton.jit
def merge_one(
    block,
    sums,
    scale,
    statistics,
    centers,
    num_splits,
    total,
    high,
    low,
    BLOCK: tl.constexpr,
):
    """Likewise of one softmax alone."""
    row = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < total
    step = tl.cast(num_splits, tl.int64) * total
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for split in range(num_splits):
        largest = tl.maximum(largest, tl.load(sums + tl.cast(split, tl.int64) * total + row, mask=inside, other=0.0))
    sum = tl.zeros((BLOCK,), tl.float32)
    own = tl.load(scale + row, mask=inside, other=0.0)
    factor = own * (high * _LOG2E)
    for split in range(num_splits):
        place = sums + tl.cast(split, tl.int64) * total + row
        shift = (tl.load(place, mask=inside, other=0.0) - largest) * factor
        sum += tl.exp2(shift) * tl.load(place + step, mask=inside, other=1.0)
    inverse = _inverse(own, high, low)
    whole = largest.to(tl.float64) * inverse + tl.log(sum.to(tl.float64))
    tl.store(statistics + row, whole, mask=inside)
    if centers is not None:
        _center(whole, row, inside, tl.cast(total, tl.int64), centers, inverse)


@triton.jit
def _power_of_two(exponent):
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@kernel
def _terms(
    student_scale,
    teacher_scale,
    statistics,
    centers,
    total,
    student_high,
    student_low,
    teacher_high,
    teacher_low,
    grad=None,
    upstream=None,
    factor=None,
    BLOCK: tl.constexpr = None,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < total
    step = tl.cast(total, tl.int64)
    student_inverse = _inverse(tl.load(student_scale + row, mask=inside, other=1.0), student_high, student_low)
    _center(tl.load(statistics + row, mask=inside, other=0.0), row, inside, step, centers, student_inverse)
    center, teacher_inverse = student_inverse, student_inverse
    if teacher_scale is not None:
        teacher_inverse = _inverse(tl.load(teacher_scale + row, mask=inside, other=1.0), teacher_high, teacher_low)
        teacher_whole = tl.load(statistics + step + row, mask=inside, other=0.0)
        center = _center(teacher_whole, row, inside, step, centers + 2 * step, teacher_inverse)
    if grad is not None:
        # Weights stay of order 1: the power of two of the largest possible one is applied at the end. Each program
        # finds it; a NaN or an infinity does not measure the others.
        largest = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, total, BLOCK):
            any = start + tl.arange(0, BLOCK).to(tl.int64)
            there = any < total
            weight = tl.abs(tl.load(grad + any, mask=there, other=0.0))
            if teacher_scale is not None:
                # |p_t (log p_t - log p_s - kl)| < 2 kl + 1, since the negative terms of kl add up to more than -1/e.
                gap = tl.load(statistics + 2 * step + any, mask=there, other=0.0)
                gap -= tl.load(statistics + step + any, mask=there, other=0.0)
                kl = gap + tl.load(statistics + any, mask=there, other=0.0)
                weight *= 1.0 + kl.to(tl.float32)
            largest = tl.maximum(largest, tl.where(weight < float("inf"), weight, 0.0))
        exponent = tl.minimum((tl.max(largest, 0).to(tl.int32, bitcast=True) >> 23) - 126, 126)
        tl.store(upstream + row, tl.load(grad + row, mask=inside) * _power_of_two(-exponent), mask=inside)
        tl.store(factor, _power_of_two(exponent))
        if teacher_scale is not None:
            # The student's logit that lies the mean gap below the teacher's center.
            gap = tl.load(statistics + 2 * step + row, mask=inside, other=0.0)
            whole = center.to(tl.float64) * teacher_inverse - gap
            _center(whole, row, inside, step, centers + 4 * step, student_inverse)


class Terms(NamedTuple):
    """What the bank gradient's kernel reads of every query.

    Of the centers, the first two lines are what the student's gradient reads as well, with the next two:
    log2 p = (product - center) scale log2(e) / temp - rest, without rounding the log-sum-exp.
    """

    centers: Tensor  # [6, G, N] center and rest: the student's, the teacher's, the student's the mean gap below that
    upstream: Tensor  # [G, N] over `factor`
    factor: Tensor  # [1] a power of two that keeps weights of order 1


def terms(
    upstream: Tensor,
    student_scale: Tensor,
    teacher_scale: Tensor | None,
    statistics: Tensor,
    student_temp: float,
    teacher_temp: float,
) -> Terms:
    """From what the passes in the forward direction have left.

    Args:
        upstream: [G, N] gradient of what the softmaxes make.
        student_scale: [G, N] of the rows.
        teacher_scale: likewise; None where there is no teacher.
        statistics: [3, G, N] float64, or [G, N] without a teacher.
        student_temp: of the softmax.
        teacher_temp: likewise.
    """
    centers = torch.empty((6, *upstream.shape), dtype=torch.float32, device=upstream.device)
    scaled, factor = (centers.new_empty(n, dtype=torch.float32) for n in (upstream.shape, 1))
    total = upstream.numel()
    with on_device(upstream):
        _terms[(-(-total // _TERMS_BLOCK),)](
            student_scale,
            teacher_scale,
            statistics.contiguous(),
            centers,
            total,
            *reciprocal(student_temp),
            *reciprocal(teacher_temp),
            upstream.contiguous(),
            scaled,
            factor,
            BLOCK=_TERMS_BLOCK,
        )
    return Terms(centers, scaled, factor)


def centers_of(
    student_scale: Tensor,
    teacher_scale: Tensor,
    lses: Tensor,
    student_temp: float,
    teacher_temp: float,
) -> Tensor:
    """The centers [4, G, N] alone, as the student's gradient reads them, from the first two statistics ``lses``."""
    centers = torch.empty((4, *lses.shape[1:]), dtype=torch.float32, device=lses.device)
    total = lses[0].numel()
    with on_device(lses):
        _terms[(-(-total // BLOCK),)](
            student_scale,
            teacher_scale,
            lses.contiguous(),
            centers,
            total,
            *reciprocal(student_temp),
            *reciprocal(teacher_temp),
            BLOCK=BLOCK,
        )
    return centers


def reciprocal(temp: float) -> tuple[float, float]:
    """1 / temp as the sum of two float32."""
    high = ctypes.c_float(1.0 / temp).value
    return high, 1.0 / temp - high
