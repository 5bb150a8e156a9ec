"""Both softmaxes over the bank, their divergence with its gradients, and the hard negatives.

A gradient is one more pass, which recomputes every probability from the saved log-sum-exp. The bank's is the student's
(:mod:`.student_gradient`) with the roles exchanged, 12 N M D flop. Wide features are split: a program owns some columns
of the result and recomputes the similarities over all features.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ..gpu import boost, splits
from ..interface import ContrastResult
from ..thresholds import AS_THEY_ARE
from .bank_pass import bank_pass
from .launch import LOG2E, float32_precision, kernel, on_device, processors
from .products import load_rows, load_vector, pair_products, weighted
from .rows import Rows, finish, prepare_all, rows_dtype
from .search import Search
from .selection import LOWEST
from .statistics import terms
from .student_gradient import student_gradient
from .tiles import Tile, bank_grad_tile, bank_pass_tile, selection_tile, student_grad_tile
from .verdicts import verdicts


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
        s = tl.where(inside, s * b_scale, LOWEST)
        t = tl.where(inside, t * b_scale, LOWEST)
        s_factor, t_factor = s_scale * student_factor, t_scale * teacher_factor
        t_logit = (t - t_center) * t_factor
        p_s, p_t = tl.exp2((s - s_center) * s_factor - s_rest), tl.exp2(t_logit - t_rest)
        # log p_t - log p_s - kl = t - s - logit_gap, in which nothing large is rounded. A weight of zero makes the
        # term zero: at the smallest temperatures its logit may be infinite.
        beyond = t_logit - ((s - m_center) * s_factor - m_rest)
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
    kind = student.shape[2], rows_dtype(normalize, student, teacher, bank), student.device
    tile = bank_pass_tile(*kind)
    search = None
    if k:
        labels = query_labels, bank_labels
        search = Search(k, student, bank, *labels, normalize, tile, selection_tile(*kind))
    placement = search.placement if search else AS_THEY_ARE
    student_rows, teacher_rows, bank_rows = prepare_all(normalize, student, teacher, bank, placement=placement)
    limited = search if search and search.by_limits else None
    temps = student_temp, teacher_temp
    statistics, maxima = bank_pass(student_rows, teacher_rows, bank_rows, tile, *temps, normalize, limited)
    assert statistics is not None  # there is a teacher
    if limited and maxima is not None:
        limited.set_limits(student_rows, maxima)
    del maxima  # their memory is there again for the verdicts
    student_grad = student.new_empty(0, dtype=torch.float32)
    grad_tile = student_grad_tile(*kind, verdicts=limited is not None)
    # A gradient whose columns are split repeats the products, and would repeat the verdicts.
    padded = student_rows.data.shape[2]
    along = limited if with_student_grad and grad_tile.out(padded) == padded else None
    if limited and not along:
        verdicts(student_rows, bank_rows, tile, limited)
    if with_student_grad:
        rows = student_rows, teacher_rows, bank_rows
        student_grad = student_gradient(*rows, grad_tile, student, statistics, *temps, normalize, along)
    if search:
        similarity, index = search.result(student_rows, bank_rows)
    else:
        shape = (*student.shape[:2], 0)
        similarity, index = (student.new_empty(shape, dtype=dtype) for dtype in (torch.float32, torch.int64))
    return ContrastResult(*statistics, student_grad, similarity, index)


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
    centers, upstream, factor = terms(
        student.scale, teacher.scale, student_lse, teacher_lse, student_temp, teacher_temp, grad_kl, logit_gap
    )
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
