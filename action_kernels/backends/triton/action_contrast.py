"""Both softmaxes over the bank, their divergence with its gradients, and the hard negatives.

A gradient is one more pass, which recomputes every probability from the saved log-sum-exp.
Student: grad_i = sum_j (p_s(j) - p_t(j)) bank_j / student_temp, the difference taken before any rounding.
With 16-bit rows that is 8 N M D flop, after 4 in the bank pass: two products for similarities, one in two terms for
the sum. Carrying sum p_s bank and sum p_t bank along in that pass, in two terms each, would be 12 as well; it saves
exponentials, but needs twice the accumulators and loses the difference of nearly equal distributions to rounding.
Bank: the same pass with the roles exchanged, 12 N M D flop. Wide features are split: a program owns some columns of the
result and recomputes the similarities over all features.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ..gpu import boost, splits
from ..interface import ContrastResult
from .bank_pass import bank_pass
from .launch import LOG2E, float32_precision, kernel, on_device, processors
from .products import load_rows, load_vector, pair_products, weighted
from .rows import Rows, finish, prepare_all
from .selection import LOWEST, in_order
from .statistics import terms
from .tiles import Tile, bank_grad_tile, bank_pass_tile, student_grad_tile


@kernel
def _student_grad(
    student,
    student_scale,
    teacher,
    teacher_scale,
    bank,
    bank_scale,
    partial,
    centers,
    num_splits,
    span,
    total,
    queries,
    rows,
    student_factor,
    teacher_factor,
    boost,
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
    blocks = tl.cdiv(queries, BLOCK_N)
    first = work // num_splits % blocks * BLOCK_N
    group = tl.cast(work // num_splits // blocks, tl.int64)
    s_rows, t_rows = student + group * queries * FEATURES, teacher + group * queries * FEATURES
    b_rows = bank + group * rows * FEATURES
    q = group * queries
    begin = split * span
    end = tl.minimum(begin + span, rows)

    s_tile = load_rows(s_rows, first, queries, FEATURES, 0, BLOCK_N, WIDTH)
    t_tile = load_rows(t_rows, first, queries, FEATURES, 0, BLOCK_N, WIDTH)
    s_scale = load_vector(student_scale + q, first, queries, BLOCK_N)[:, None]
    t_scale = load_vector(teacher_scale + q, first, queries, BLOCK_N)[:, None]
    step = tl.cast(total, tl.int64)
    s_center = load_vector(centers + q, first, queries, BLOCK_N)[:, None]
    s_rest = load_vector(centers + step + q, first, queries, BLOCK_N)[:, None]
    t_center = load_vector(centers + 2 * step + q, first, queries, BLOCK_N)[:, None]
    t_rest = load_vector(centers + 3 * step + q, first, queries, BLOCK_N)[:, None]
    row = first + tl.arange(0, BLOCK_N)
    sums = tl.zeros((BLOCK_N, OUT), tl.float32)
    for start in range(begin, end, BLOCK_M):
        b_tile = load_rows(b_rows, start, end, FEATURES, 0, BLOCK_M, WIDTH)
        s, t = pair_products(
            s_rows,
            t_rows,
            s_tile,
            t_tile,
            first,
            queries,
            b_rows,
            b_tile,
            start,
            end,
            True,
            FEATURES,
            WIDTH,
            BLOCK_N,
            BLOCK_M,
            PRECISION,
        )
        b_scale = load_vector(bank_scale + group * rows, start, end, BLOCK_M)[None, :]
        # As in the bank pass: a choice keeps the similarity from being fused, unrounded, with the subtraction after it.
        inside = (start + tl.arange(0, BLOCK_M) < end)[None, :] & (row < queries)[:, None]
        s = tl.where(inside, s * s_scale * b_scale, LOWEST)
        t = tl.where(inside, t * t_scale * b_scale, LOWEST)
        p_s = tl.exp2((s - s_center) * student_factor - s_rest)
        p_t = tl.exp2((t - t_center) * teacher_factor - t_rest)
        weight = (p_s - p_t) * (b_scale * boost)
        if FEATURES != WIDTH:
            b_tile = load_rows(b_rows, start, end, FEATURES, out, BLOCK_M, OUT)
        sums = weighted(weight, b_tile, sums, PRECISION)
    place = (split * step + q + row)[:, None] * FEATURES + out + tl.arange(0, OUT)[None, :]
    tl.store(partial + place, sums, mask=(row < queries)[:, None])


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
        s_scale = load_vector(student_scale + q, start, end, BLOCK_N)[None, :]
        t_scale = load_vector(teacher_scale + q, start, end, BLOCK_N)[None, :]
        s_center = load_vector(centers + q, start, end, BLOCK_N)[None, :]
        s_rest = load_vector(centers + step + q, start, end, BLOCK_N)[None, :]
        t_center = load_vector(centers + 2 * step + q, start, end, BLOCK_N)[None, :]
        t_rest = load_vector(centers + 3 * step + q, start, end, BLOCK_N)[None, :]
        grad = load_vector(upstream + q, start, end, BLOCK_N)[None, :] * boost
        m_center = load_vector(centers + 4 * step + q, start, end, BLOCK_N)[None, :]
        m_rest = load_vector(centers + 5 * step + q, start, end, BLOCK_N)[None, :]
        inside = (start + tl.arange(0, BLOCK_N) < end)[None, :] & (row < rows)[:, None]
        s = tl.where(inside, s * s_scale * b_scale, LOWEST)
        t = tl.where(inside, t * t_scale * b_scale, LOWEST)
        t_logit = (t - t_center) * teacher_factor
        p_s, p_t = tl.exp2((s - s_center) * student_factor - s_rest), tl.exp2(t_logit - t_rest)
        # log p_t - log p_s - kl = t - s - logit_gap, in which nothing large is rounded. A weight of zero makes the
        # term zero: at the smallest temperatures its logit may be infinite.
        beyond = t_logit - ((s - m_center) * student_factor - m_rest)
        weight = tl.where(p_t == 0.0, 0.0, p_t * beyond)
        s_weight = grad * s_scale * student_grad_scale * (p_s - p_t)
        t_weight = grad * t_scale * teacher_grad_scale * weight
        if FEATURES != WIDTH:
            s_tile = load_rows(s_rows, start, end, FEATURES, out, BLOCK_N, OUT)
            t_tile = load_rows(t_rows, start, end, FEATURES, out, BLOCK_N, OUT)
        sums = weighted(s_weight, s_tile, sums, PRECISION)
        sums = weighted(t_weight, t_tile, sums, PRECISION)
    place = (tl.cast(split, tl.int64) * total + group * rows + row)[:, None] * FEATURES
    tl.store(partial + place + out + tl.arange(0, OUT)[None, :], sums, mask=(row < rows)[:, None])


def action_contrast(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    k: int,
    student_temp: float,
    teacher_temp: float,
    query_labels: Tensor | None,
    bank_labels: Tensor | None,
    normalize: bool,
    with_student_grad: bool,
) -> ContrastResult:
    student_rows, teacher_rows, bank_rows = prepare_all(normalize, student, teacher, bank)
    kind = student.shape[2], student_rows.data.dtype, student.device
    tile = bank_pass_tile(*kind, selects=k > 0)
    found = bank_pass(
        student_rows, teacher_rows, bank_rows, tile, k, student_temp, teacher_temp, query_labels, bank_labels
    )
    assert found.statistics is not None  # there is a teacher
    student_grad = student.new_empty(0, dtype=torch.float32)
    if with_student_grad:
        lses = found.statistics.student_lse, found.statistics.teacher_lse
        student_grad = _student_gradient(
            student_rows,
            teacher_rows,
            bank_rows,
            student_grad_tile(*kind),
            student,
            *lses,
            student_temp,
            teacher_temp,
            normalize,
        )
    if found.keys is None:
        shape = (*student.shape[:2], 0)
        similarity, index = (student.new_empty(shape, dtype=dtype) for dtype in (torch.float32, torch.int64))
    else:
        similarity, index = in_order(found.keys, k)
    return ContrastResult(*found.statistics, student_grad, similarity, index)


def action_contrast_bank_gradient(
    grad_kl: Tensor,
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    logit_gap: Tensor,
    student_lse: Tensor,
    teacher_lse: Tensor,
    student_temp: float,
    teacher_temp: float,
    normalize: bool,
) -> Tensor:
    student_rows, teacher_rows, bank_rows = prepare_all(normalize, student, teacher, bank)
    tile = bank_grad_tile(bank.shape[2], student_rows.data.dtype, bank.device)
    return _bank_gradient(
        grad_kl,
        student_rows,
        teacher_rows,
        bank_rows,
        tile,
        bank,
        logit_gap,
        student_lse,
        teacher_lse,
        student_temp,
        teacher_temp,
        normalize,
    )


def _student_gradient(
    student: Rows,
    teacher: Rows,
    bank: Rows,
    tile: Tile,
    raw: Tensor,
    student_lse: Tensor,
    teacher_lse: Tensor,
    student_temp: float,
    teacher_temp: float,
    normalize: bool,
) -> Tensor:
    """d kl_i / d student_i [G, N, D] for the raw student rows ``raw``."""
    groups, queries, features = student.data.shape
    rows, device = bank.data.shape[1], raw.device
    out = tile.out(features)
    blocks = groups * -(-queries // tile.block_n) * (features // out)
    num_splits, span = splits(processors(device), blocks, rows, tile.block_m)
    partial = torch.empty((num_splits, groups, queries, features), dtype=torch.float32, device=device)
    centers, _, _ = terms(student_lse, teacher_lse, student_temp, teacher_temp)
    with on_device(raw):
        _student_grad[(blocks * num_splits,)](
            *student,
            *teacher,
            *bank,
            partial,
            centers,
            num_splits,
            span,
            groups * queries,
            queries,
            rows,
            LOG2E / student_temp,
            LOG2E / teacher_temp,
            boost(normalize),
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
    return finish(partial, raw, normalize, 1.0 / (student_temp * boost(normalize)))


def _bank_gradient(
    grad_kl: Tensor,
    student: Rows,
    teacher: Rows,
    bank: Rows,
    tile: Tile,
    raw: Tensor,
    logit_gap: Tensor,
    student_lse: Tensor,
    teacher_lse: Tensor,
    student_temp: float,
    teacher_temp: float,
    normalize: bool,
) -> Tensor:
    """Gradient [G, M, D] of sum(grad_kl * kl) in the raw bank rows ``raw``."""
    groups, queries, features = student.data.shape
    rows, device = bank.data.shape[1], raw.device
    out = tile.out(features)
    blocks = groups * -(-rows // tile.block_m) * (features // out)
    num_splits, span = splits(processors(device), blocks, queries, tile.block_n)
    partial = torch.empty((num_splits, groups, rows, features), dtype=torch.float32, device=device)
    centers, upstream, factor = terms(student_lse, teacher_lse, student_temp, teacher_temp, grad_kl, logit_gap)
    temp = min(student_temp, teacher_temp)  # applied at the end, like the factor
    with on_device(raw):
        _bank_grad[(blocks * num_splits,)](
            *student,
            *teacher,
            *bank,
            partial,
            centers,
            upstream,
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
    return finish(partial, raw, normalize, 1.0 / (temp * boost(normalize)), factor)
