"""The gradient in a whole bank: the student's (:mod:`.student_gradient`) with the roles exchanged.

Every probability is recomputed from the saved log-sum-exp, in 12 N M D flop with two weight terms; 6 without a teacher
(no PAIR), where the gradient is that of the student's log-sum-exp. Wide features are split: a program owns some columns
of the result and recomputes the similarities over all features.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ..gpu import Partial, boost, splits
from .finish_and_collect import finish_and_collect
from .launch import LOG2E, float32_precision, kernel, on_device, processors
from .products import load_rows, load_vector, pair_products, weighted
from .rows import Rows
from .selection import LOWEST
from .statistics import terms
from .tiles import bank_grad_tile


@kernel
def _bank_grad(
    student,
    student_scale,
    teacher,
    teacher_scale,
    bank,
    bank_scale,
    partial,
    centers,
    upstream,
    num_splits,
    span,
    total,
    lines,
    queries,
    rows,
    student_factor,
    teacher_factor,
    student_grad_scale,
    teacher_grad_scale,
    boost,
    PAIR: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    work = tl.program_id(0)
    out = work % (FEATURES // OUT) * OUT
    work = work // (FEATURES // OUT)
    split = work % num_splits
    blocks = tl.cdiv(rows, BLOCK_M)
    first = work // num_splits % blocks * BLOCK_M
    group = tl.cast(work // num_splits // blocks, tl.int64)
    s_rows, t_rows = student + group * queries * FEATURES, teacher + group * queries * FEATURES
    b_rows = bank + group * rows * FEATURES
    q = group * queries
    begin = split * span
    end = tl.minimum(begin + span, queries)

    step = tl.cast(lines, tl.int64)
    b_tile = load_rows(b_rows, first, rows, FEATURES, 0, BLOCK_M, WIDTH)
    b_scale = load_vector(bank_scale + group * rows, first, rows, BLOCK_M)[:, None]
    row = first + tl.arange(0, BLOCK_M)
    sums = tl.zeros((BLOCK_M, OUT), tl.float32)
    for start in range(begin, end, BLOCK_N):
        s_tile = load_rows(s_rows, start, end, FEATURES, 0, BLOCK_N, WIDTH)
        s, _ = pair_products(
            b_rows,
            b_rows,
            b_tile,
            b_tile,
            first,
            rows,
            s_rows,
            s_tile,
            start,
            end,
            False,
            FEATURES,
            WIDTH,
            BLOCK_M,
            BLOCK_N,
            PRECISION,
        )
        s_scale = load_vector(student_scale + q, start, end, BLOCK_N)[None, :]
        s_center = load_vector(centers + q, start, end, BLOCK_N)[None, :]
        s_rest = load_vector(centers + step + q, start, end, BLOCK_N)[None, :]
        grad = load_vector(upstream + q, start, end, BLOCK_N)[None, :] * boost
        inside = (start + tl.arange(0, BLOCK_N) < end)[None, :] & (row < rows)[:, None]
        s = tl.where(inside, s * b_scale, LOWEST)
        s_factor = s_scale * student_factor
        p_s = tl.exp2((s - s_center) * s_factor - s_rest)
        if PAIR:
            t_tile = load_rows(t_rows, start, end, FEATURES, 0, BLOCK_N, WIDTH)
            t, _ = pair_products(
                b_rows,
                b_rows,
                b_tile,
                b_tile,
                first,
                rows,
                t_rows,
                t_tile,
                start,
                end,
                False,
                FEATURES,
                WIDTH,
                BLOCK_M,
                BLOCK_N,
                PRECISION,
            )
            t_scale = load_vector(teacher_scale + q, start, end, BLOCK_N)[None, :]
            t_center = load_vector(centers + 2 * step + q, start, end, BLOCK_N)[None, :]
            t_rest = load_vector(centers + 3 * step + q, start, end, BLOCK_N)[None, :]
            m_center = load_vector(centers + 4 * step + q, start, end, BLOCK_N)[None, :]
            m_rest = load_vector(centers + 5 * step + q, start, end, BLOCK_N)[None, :]
            t = tl.where(inside, t * b_scale, LOWEST)
            t_logit = (t - t_center) * (t_scale * teacher_factor)
            p_t = tl.exp2(t_logit - t_rest)
            # log p_t - log p_s - kl = t - s - logit_gap, in which nothing large is rounded. A weight of zero makes the
            # term zero: at the smallest temperatures its logit may be infinite.
            beyond = t_logit - ((s - m_center) * s_factor - m_rest)
            t_weight = grad * t_scale * teacher_grad_scale * tl.where(p_t == 0.0, 0.0, p_t * beyond)
            p_s -= p_t
            if FEATURES != WIDTH:
                t_tile = load_rows(t_rows, start, end, FEATURES, out, BLOCK_N, OUT)
            sums = weighted(t_weight, t_tile, sums, PRECISION)
        s_weight = grad * s_scale * student_grad_scale * p_s
        if FEATURES != WIDTH:
            s_tile = load_rows(s_rows, start, end, FEATURES, out, BLOCK_N, OUT)
        sums = weighted(s_weight, s_tile, sums, PRECISION)
    place = (tl.cast(split, tl.int64) * total + group * rows + row)[:, None] * FEATURES
    tl.store(partial + place + out + tl.arange(0, OUT)[None, :], sums, mask=(row < rows)[:, None])


def bank_gradient(
    upstream: Tensor,
    student: Rows,
    teacher: Rows | None,
    bank: Rows,
    raw: Tensor,
    statistics: Tensor,
    student_temp: float,
    teacher_temp: float,
    normalize: bool,
) -> Tensor:
    """The gradient [G, M, D] of the sum of ``upstream`` [G, N] times the divergence in the raw bank rows ``raw``.

    Without a teacher it is that of ``upstream`` times the log-sum-exp: ``statistics`` is that, [G, N].
    """
    tile = bank_grad_tile(raw.shape[2], student.data.dtype, raw.device)
    groups, queries, features = student.data.shape
    rows, device = bank.data.shape[1], raw.device
    out = tile.out(features)
    blocks = groups * -(-rows // tile.block_m) * (features // out)
    num_splits, span = splits(processors(device), blocks, queries, tile.block_n)
    partial = torch.empty((num_splits, groups, rows, features), dtype=torch.float32, device=device)
    t_scale = None if teacher is None else teacher.scale
    temps = student_temp, teacher_temp
    found = terms(upstream, student.scale, t_scale, statistics, *temps)
    temp = min(student_temp, teacher_temp)  # applied at the end, like the factor
    with on_device(raw):
        _bank_grad[(blocks * num_splits,)](
            student.data,
            student.scale,
            (teacher or student).data,
            (teacher or student).scale,
            bank.data,
            bank.scale,
            partial,
            found.centers,
            found.upstream,
            num_splits,
            span,
            groups * rows,
            groups * queries,
            queries,
            rows,
            LOG2E / student_temp,
            LOG2E / teacher_temp,
            temp / student_temp,
            temp / teacher_temp / LOG2E,
            boost(normalize),
            PAIR=teacher is not None,
            FEATURES=features,
            BLOCK_N=tile.block_n,
            BLOCK_M=tile.block_m,
            WIDTH=tile.width,
            OUT=out,
            PRECISION=float32_precision(),
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=True,
        )
    sums = Partial(partial, 1.0 / (temp * boost(normalize)), found.factor)
    return finish_and_collect(sums, raw, normalize)
