"""Between the passes, a few floats per query: shares' sums become log-sum-exps, and these what a gradient reads.

Temperatures come as reciprocals in two floats: Triton passes scalars as float32, and a log-sum-exp needs more bits.
"""

from __future__ import annotations

import ctypes
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import INTERPRETED, LOG2E, kernel, on_device

_LOG2E = tl.constexpr(LOG2E)
_LN2 = tl.constexpr(math.log(2))
_BLOCK = 1 << 14 if INTERPRETED else 128  # queries of a program


@kernel
def _merge(
    statistics, kl, student_lse, teacher_lse, shares, total,
    student_high, student_low, teacher_high, teacher_low, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < total
    step = tl.cast(shares, tl.int64) * total
    s_max = tl.full((BLOCK,), float("-inf"), tl.float32)
    t_max = s_max
    for share in range(shares):
        place = statistics + tl.cast(share, tl.int64) * total + row
        s_max = tl.maximum(s_max, tl.load(place, mask=inside, other=0.0))
        t_max = tl.maximum(t_max, tl.load(place + 2 * step, mask=inside, other=0.0))
    s_sum = tl.zeros((BLOCK,), tl.float32)
    t_sum = tl.zeros((BLOCK,), tl.float32)
    gap = tl.zeros((BLOCK,), tl.float32)
    for share in range(shares):
        place = statistics + tl.cast(share, tl.int64) * total + row
        s_shift = (tl.load(place, mask=inside, other=0.0) - s_max) * (student_high * _LOG2E)
        t_shift = (tl.load(place + 2 * step, mask=inside, other=0.0) - t_max) * (teacher_high * _LOG2E)
        t_decay, t_part = tl.exp2(t_shift), tl.load(place + 3 * step, mask=inside, other=1.0)
        s_sum += tl.exp2(s_shift) * tl.load(place + step, mask=inside, other=1.0)
        t_sum += t_decay * t_part
        # As in the scan: when a maximum moves, so does every difference in the gap.
        gap += t_decay * (tl.load(place + 4 * step, mask=inside, other=0.0) + t_part * (t_shift - s_shift))
    s_log, t_log = tl.log(s_sum.to(tl.float64)), tl.log(t_sum.to(tl.float64))
    divergence = gap.to(tl.float64) * _LN2 / t_sum.to(tl.float64) + (s_log - t_log)
    tl.store(kl + row, divergence.to(tl.float32), mask=inside)
    student_inverse = tl.cast(student_high, tl.float64) + tl.cast(student_low, tl.float64)
    teacher_inverse = tl.cast(teacher_high, tl.float64) + tl.cast(teacher_low, tl.float64)
    tl.store(student_lse + row, s_max.to(tl.float64) * student_inverse + s_log, mask=inside)
    tl.store(teacher_lse + row, t_max.to(tl.float64) * teacher_inverse + t_log, mask=inside)


@triton.jit
def _power_of_two(exponent):
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _center(lse, row, inside, total, centers, high, low):
    """Center and rest of one distribution, a line each of `centers`."""
    inverse = tl.cast(high, tl.float64) + tl.cast(low, tl.float64)
    whole = tl.load(lse + row, mask=inside, other=0.0)
    center = (whole / inverse).to(tl.float32)
    rest = (whole - center.to(tl.float64) * inverse) * _LOG2E
    tl.store(centers + row, center, mask=inside)
    tl.store(centers + total + row, rest.to(tl.float32), mask=inside)


@kernel
def _terms(
    student_lse, teacher_lse, centers, grad, kl, largest, upstream, factor, total,
    student_high, student_low, teacher_high, teacher_low, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < total
    _center(student_lse, row, inside, total, centers, student_high, student_low)
    _center(teacher_lse, row, inside, total, centers + 2 * tl.cast(total, tl.int64), teacher_high, teacher_low)
    if grad is not None:
        # Weights stay of order 1: the power of two of the largest possible one goes in at the end.
        exponent = tl.minimum((tl.load(largest).to(tl.int32, bitcast=True) >> 23) - 126, 126)
        tl.store(upstream + row, tl.load(grad + row, mask=inside) * _power_of_two(-exponent), mask=inside)
        tl.store(upstream + total + row, tl.load(kl + row, mask=inside) * _LOG2E, mask=inside)
        tl.store(factor, _power_of_two(exponent))


def merge(statistics: Tensor, student_temp: float, teacher_temp: float) -> tuple[Tensor, Tensor, Tensor]:
    """(kl, student_lse, teacher_lse), all [G, N], from the sums of the scan's shares [5, shares, G, N]."""
    _, shares, groups, queries = statistics.shape
    kl = statistics.new_empty((groups, queries), dtype=torch.float32)
    student_lse, teacher_lse = (torch.empty_like(kl, dtype=torch.float64) for _ in range(2))
    with on_device(statistics):
        _merge[(-(-kl.numel() // _BLOCK),)](
            statistics, kl, student_lse, teacher_lse, shares, kl.numel(),
            *_reciprocal(student_temp), *_reciprocal(teacher_temp), BLOCK=_BLOCK,
        )  # fmt: skip
    return kl, student_lse, teacher_lse


def terms(
    student_lse: Tensor,
    teacher_lse: Tensor,
    student_temp: float,
    teacher_temp: float,
    grad_kl: Tensor | None = None,
    kl: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What the gradients' kernels read of every query.

    Returns:
        centers: [4, G, N], the student's center and rest, and the teacher's:
            log2 p = (similarity - center) log2(e) / temp - rest, without rounding the log-sum-exp.
        upstream: [2, G, N], ``grad_kl`` over ``factor``, and the divergence to the base 2.
        factor: [1], a power of two that keeps the bank gradient's weights of order 1.
    """
    centers = torch.empty((4, *student_lse.shape), dtype=torch.float32, device=student_lse.device)
    upstream = factor = largest = None
    if grad_kl is not None:
        upstream, factor = (centers.new_empty(n, dtype=torch.float32) for n in ((2, *student_lse.shape), 1))
        # |p_t (log p_t - log p_s - kl)| < 2 kl + 1, since the negative terms of kl add up to more than -1/e.
        # What is no number stays one in its own group, and is no measure for the others.
        largest = (grad_kl.abs() * (1.0 + kl)).nan_to_num(0.0, 0.0, 0.0).amax()
        grad_kl, kl = grad_kl.contiguous(), kl.contiguous()
    total = student_lse.numel()
    with on_device(student_lse):
        _terms[(-(-total // _BLOCK),)](
            student_lse.contiguous(), teacher_lse.contiguous(), centers, grad_kl, kl, largest, upstream, factor, total,
            *_reciprocal(student_temp), *_reciprocal(teacher_temp), BLOCK=_BLOCK,
        )  # fmt: skip
    return centers, upstream, factor


def _reciprocal(temp: float) -> tuple[float, float]:
    """1 / temp as the sum of two float32."""
    high = ctypes.c_float(1.0 / temp).value
    return high, 1.0 / temp - high
