"""The first pass over the bank: log-sum-exps, the divergence, and the best similarity in each group of bank rows.

A program keeps a block of queries and walks through its split of the bank. Similarities stay in registers, as products
with unit bank rows: what is left of them is the query's own scale, one factor of a row. Splits are merged afterwards,
so that few queries against a long bank still fill a GPU. There are as many softmaxes as SIDES: student and teacher with
their divergence, or one, or none.

Where the rows are of unit length and no temperature is tiny (LEAN), a logit is one multiply-add of the product. In
general its reference is subtracted first: (x - max) is then exact wherever it matters, at any temperature and length.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gpu import splits
from .labels import of_another_class
from .launch import LOG2E, float32_precision, kernel, on_device, processors
from .products import fused, load_rows, load_vector, products_with_bank
from .rows import Rows
from .search import Search
from .selection import LOWEST
from .tiles import Tile

# Logits to the base 2 up to which one multiply-add makes them: it rounds them relative to 0, not to the largest one.
# The student's have to be smaller: where both softmaxes are all but one row, nearly all of their logits cancels in the
# divergence. With unit rows and a temperature of 0.1 they reach 14, with 0.01 they reach 144.
LARGEST_STUDENT_LOGIT = 32.0
LARGEST_TEACHER_LOGIT = 256.0


def lean(normalize: bool, student_temp: float, teacher_temp: float) -> bool:
    """Whether logits are small enough for the fast arithmetic."""
    student, teacher = LOG2E / student_temp, LOG2E / teacher_temp
    return normalize and student <= LARGEST_STUDENT_LOGIT and teacher <= LARGEST_TEACHER_LOGIT


@triton.jit
def best_of_groups(x, GROUPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """The largest element in each of the groups of columns [BLOCK_N, GROUPS].

    A group's columns are those that one lane holds in a tensor core's result, so that lanes exchange nothing.
    """
    if GROUPS == 1:
        best = tl.max(x, 1)[:, None]
    elif GROUPS == 4:
        best = tl.max(tl.max(tl.reshape(x, (BLOCK_N, BLOCK_M // 8, 4, 2)), 3), 1)
    else:
        x = tl.reshape(x, (BLOCK_N, BLOCK_M // (2 * GROUPS), GROUPS // 4, 4, 2))
        best = tl.reshape(tl.max(tl.max(x, 4), 1), (BLOCK_N, GROUPS))
    return best


@triton.jit
def _logits_of_tile(x, best, x_max, factor, LEAN: tl.constexpr):
    """The largest product so far, how far that moves the sums, and a tile's logits, both relative to it."""
    top = tl.maximum(x_max, best)
    if LEAN:
        # Sums are relative to exp2 of the rounded product max * factor, which is what the multiply-adds subtract.
        reference = top * factor
        logit = fused(x, factor[:, None], -reference[:, None])
        # The choice keeps the product from being fused, unrounded: the sums so far are relative to the rounded one.
        shift = tl.where(x_max > LOWEST, x_max * factor, LOWEST) - reference
    else:
        logit = (x - top[:, None]) * factor[:, None]
        shift = (x_max - top) * factor
    return top, shift, logit


@triton.jit
def _sum_of_tile(s, s_max, s_sum, s_factor, LEAN: tl.constexpr):
    """The running sum of one softmax with one more tile."""
    s_top, s_shift, s_logit = _logits_of_tile(s, tl.max(s, 1), s_max, s_factor, LEAN)
    return s_top, tl.exp2(s_shift) * s_sum + tl.sum(tl.exp2(s_logit), 1)


@triton.jit
def _statistics_of_tile(s, t, s_max, s_sum, t_max, t_sum, gap, s_there, s_factor, t_factor, LEAN: tl.constexpr):
    """The running sums of both softmaxes with one more tile."""
    t_best = tl.max(t, 1)
    s_top, s_shift, s_logit = _logits_of_tile(s, tl.max(s, 1), s_max, s_factor, LEAN)
    t_top, t_shift, t_logit = _logits_of_tile(t, t_best, t_max, t_factor, LEAN)
    p = tl.exp2(t_logit)
    if LEAN:
        term = p * (t_logit - s_logit)
        there, there_shift = s_top, s_shift
    else:
        there = tl.where(t_best > t_max, tl.max(tl.where(t == t_best[:, None], s, LOWEST), 1), s_there)
        there_shift = (s_there - there) * s_factor
        # gap = sum of p (t_logit - s_logit), the student's logits relative to that of the teacher's best row: when the
        # references move, so does every difference in it. No weight, no term: at the smallest temperatures a logit
        # that counts for nothing is infinite.
        term = tl.where(p == 0.0, 0.0, p * (t_logit - (s - there[:, None]) * s_factor[:, None]))
    t_decay = tl.exp2(t_shift)
    moved = tl.where(t_decay == 0.0, 0.0, t_decay * (gap + t_sum * (t_shift - there_shift)))
    gap = moved + tl.sum(term, 1)
    t_sum = t_decay * t_sum + tl.sum(p, 1)
    s_sum = tl.exp2(s_shift) * s_sum + tl.sum(tl.exp2(s_logit), 1)
    return s_top, s_sum, t_top, t_sum, gap, there


@triton.jit
def _take(
    s_rows,
    t_rows,
    s_tile,
    t_tile,
    first,
    queries,
    b_rows,
    scales,
    labels,
    own_label,
    lines,
    start,
    end,
    s_factor,
    t_factor,
    s_max,
    s_sum,
    t_max,
    t_sum,
    gap,
    s_there,
    SIDES: tl.constexpr,
    GROUPS: tl.constexpr,
    LABELLED: tl.constexpr,
    LEAN: tl.constexpr,
    MASKED: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of the bank: its group maxima go to `lines`, its sums to those of before, which are returned."""
    s, t, _, _ = products_with_bank(
        s_rows,
        t_rows,
        s_tile,
        t_tile,
        first,
        queries,
        b_rows,
        scales,
        start,
        end,
        SIDES == 2,
        FEATURES,
        WIDTH,
        BLOCK_N,
        BLOCK_M,
        PRECISION,
        MASKED,
    )
    if MASKED:
        # Beside the columns that do not exist, the choice keeps a product from being fused, unrounded, with the
        # subtraction of the largest rounded one. Differences of lean logits have to stay finite.
        nothing: tl.constexpr = -1e30 if LEAN and SIDES > 0 else LOWEST
        inside = (start + tl.arange(0, BLOCK_M) < end)[None, :]
        s = tl.where(inside, s, nothing)
        if SIDES == 2:
            t = tl.where(inside, t, nothing)
    if GROUPS > 0:
        eligible = s
        if LABELLED:
            label = load_vector(labels, start, end, BLOCK_M, MASKED)[None, :]
            eligible = tl.where(of_another_class(label, own_label[:, None]), s, LOWEST)
        best = best_of_groups(eligible, GROUPS, BLOCK_N, BLOCK_M)
        place = lines[:, None] + (start // BLOCK_M * GROUPS + tl.arange(0, GROUPS))[None, :]
        tl.store(place, best, mask=(first + tl.arange(0, BLOCK_N) < queries)[:, None])
    if SIDES == 2:
        s_max, s_sum, t_max, t_sum, gap, s_there = _statistics_of_tile(
            s, t, s_max, s_sum, t_max, t_sum, gap, s_there, s_factor, t_factor, LEAN
        )
    if SIDES == 1:
        s_max, s_sum = _sum_of_tile(s, s_max, s_sum, s_factor, LEAN)
    return s_max, s_sum, t_max, t_sum, gap, s_there


@kernel
def _bank_pass(
    student,
    student_scale,
    teacher,
    teacher_scale,
    bank,
    bank_scale,
    sums,
    query_labels,
    bank_labels,
    maxima,
    line,
    num_splits,
    span,
    total,
    queries,
    rows,
    student_factor,
    teacher_factor,
    SIDES: tl.constexpr,
    GROUPS: tl.constexpr,
    LABELLED: tl.constexpr,
    LEAN: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    work = tl.program_id(0)
    split = work % num_splits
    blocks = tl.cdiv(queries, BLOCK_N)
    first = work // num_splits % blocks * BLOCK_N
    group = tl.cast(work // num_splits // blocks, tl.int64)
    s_rows, t_rows = student + group * queries * FEATURES, teacher + group * queries * FEATURES
    b_rows = bank + group * rows * FEATURES
    scales, labels = bank_scale + group * rows, bank_labels
    begin = split * span
    end = tl.minimum(begin + span, rows)

    s_factor = load_vector(student_scale + group * queries, first, queries, BLOCK_N) * student_factor
    s_tile = load_rows(s_rows, first, queries, FEATURES, 0, BLOCK_N, WIDTH)
    t_tile, t_factor = s_tile, s_factor
    if SIDES == 2:
        t_factor = load_vector(teacher_scale + group * queries, first, queries, BLOCK_N) * teacher_factor
        t_tile = load_rows(t_rows, first, queries, FEATURES, 0, BLOCK_N, WIDTH)
    s_max = tl.full((BLOCK_N,), LOWEST, tl.float32)
    t_max = tl.full((BLOCK_N,), LOWEST, tl.float32)
    s_sum = tl.zeros((BLOCK_N,), tl.float32)
    t_sum = tl.zeros((BLOCK_N,), tl.float32)
    gap = tl.zeros((BLOCK_N,), tl.float32)
    s_there = tl.zeros((BLOCK_N,), tl.float32)  # the student's product that the gap's differences are relative to
    row = first + tl.arange(0, BLOCK_N)
    lines, own_label = maxima, s_max
    if GROUPS > 0:
        lines = maxima + (group * queries + row) * line
        if LABELLED:
            labels += group * rows
            own_label = load_vector(query_labels + group * queries, first, queries, BLOCK_N)

    whole = begin  # tiles up to here are taken without a mask
    if LEAN:
        whole = end - (end - begin) % BLOCK_M
    for masked in tl.static_range(2):
        for start in range(whole if masked else begin, end if masked else whole, BLOCK_M):
            s_max, s_sum, t_max, t_sum, gap, s_there = _take(
                s_rows,
                t_rows,
                s_tile,
                t_tile,
                first,
                queries,
                b_rows,
                scales,
                labels,
                own_label,
                lines,
                start,
                end,
                s_factor,
                t_factor,
                s_max,
                s_sum,
                t_max,
                t_sum,
                gap,
                s_there,
                SIDES,
                GROUPS,
                LABELLED,
                LEAN,
                masked == 1,
                FEATURES,
                BLOCK_N,
                BLOCK_M,
                WIDTH,
                PRECISION,
            )

    if SIDES > 0:
        place = sums + tl.cast(split, tl.int64) * total + group * queries + row
        step = tl.cast(num_splits, tl.int64) * total
        s_beyond = s_max
        if LEAN:
            # From the rounded references to the largest logits themselves.
            s_beyond = fused(s_max, s_factor, -(s_max * s_factor))
            s_sum *= tl.exp2(-s_beyond)
        tl.store(place, s_max, mask=row < queries)
        tl.store(place + step, s_sum, mask=row < queries)
        if SIDES == 2:
            if LEAN:
                t_beyond = fused(t_max, t_factor, -(t_max * t_factor))
                gap = tl.exp2(-t_beyond) * (gap - t_sum * (t_beyond - s_beyond))
                t_sum *= tl.exp2(-t_beyond)
            tl.store(place + 2 * step, t_max, mask=row < queries)
            tl.store(place + 3 * step, t_sum, mask=row < queries)
            tl.store(place + 4 * step, gap, mask=row < queries)
            tl.store(place + 5 * step, s_there, mask=row < queries)


def bank_pass(
    student: Rows,
    teacher: Rows | None,
    bank: Rows,
    tile: Tile,
    student_temp: float = 1.0,
    teacher_temp: float = 1.0,
    normalize: bool = True,
    search: Search | None = None,
    with_lse: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """The sums of the bank's splits, and the best eligible product in each group of its rows.

    Sums are [6, num_splits, G, N] where there is a teacher, and [2, num_splits, G, N] with ``with_lse`` where there is
    none; maxima [G, N, groups], over the query's scale, where there is a ``search``.
    """
    sides = 2 if teacher is not None else int(with_lse)
    groups_of_tile = search.groups_of_tile if search else 0
    groups, queries, features = student.data.shape
    rows, device = bank.data.shape[1], student.data.device
    blocks = groups * -(-queries // tile.block_n)
    num_splits, span = splits(processors(device), blocks, rows, tile.block_m)
    sums = maxima = None
    line = -(-rows // tile.block_m) * groups_of_tile
    if sides:
        sums = torch.empty((6 if sides == 2 else 2, num_splits, groups, queries), dtype=torch.float32, device=device)
    if groups_of_tile:
        maxima = torch.empty((groups, queries, line), dtype=torch.float32, device=device)
    with on_device(student.data):
        _bank_pass[(blocks * num_splits,)](
            student.data,
            student.scale,
            (teacher or student).data,
            (teacher or student).scale,
            bank.data,
            bank.scale,
            sums,
            student.labels,
            bank.labels,
            maxima,
            line,
            num_splits,
            span,
            groups * queries,
            queries,
            rows,
            LOG2E / student_temp,
            LOG2E / teacher_temp,
            SIDES=sides,
            GROUPS=groups_of_tile,
            LABELLED=bank.labels is not None,
            LEAN=sides == 0 or lean(normalize, student_temp, teacher_temp),
            FEATURES=features,
            BLOCK_N=tile.block_n,
            BLOCK_M=tile.block_m,
            WIDTH=tile.width,
            PRECISION=float32_precision(),
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=True,
        )
    return sums, maxima
