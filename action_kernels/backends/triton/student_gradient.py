"""The second pass over the bank: a gradient in the student, and the selection's verdicts.

Every probability is recomputed from the saved log-sum-exp:
grad_i = sum_j (p_s(j) - p_t(j)) bank_j / student_temp, the difference taken before any rounding.
That is 6 N M D flop, after 4 in the bank pass: two products for similarities, one for the sum. Carrying sum p_s bank
and sum p_t bank along in that pass would be 8 in all; it saves exponentials, but needs twice the accumulators and loses
the difference of nearly equal distributions to rounding. Without a teacher (no PAIR) the gradient is that of the
student's log-sum-exp, sum_j p_s(j) bank_j / student_temp, 4 N M D flop.

Unit rows of bfloat16, which are float16 by now, take a weight in one term, a float16 number. No difference of
probabilities exceeds 1, so a factor brings them to the upper end of float16's range: from 2^-28 on they keep all of its
11 bits, three more than the result has. (A factor by the row's divergence, as sum_j |p_s(j) - p_t(j)| <= sqrt(2 kl),
would save what is smaller, but costs an instruction for every pair.) Other 16-bit rows take two terms.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gpu import Partial, boost, splits
from .bank_pass import lean
from .launch import LOG2E, float32_precision, kernel, on_device, processors
from .products import load_rows, load_vector, products_with_bank, weighted
from .rows import Rows
from .search import Search
from .selection import LOWEST
from .tiles import Tile
from .words import append_verdicts, load_limits

BOOST = 2.0**22
"""Factor on weights of one term, after which they are at most 2^15: the scales of unit rows are at most 1/128."""


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
    out,
    start,
    end,
    s_factor,
    t_factor,
    s_center,
    s_rest,
    t_center,
    t_rest,
    boost,
    words,
    line,
    count,
    capacity,
    limit,
    sums,
    PAIR: tl.constexpr,
    SEARCH: tl.constexpr,
    LABELLED: tl.constexpr,
    MASKED: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    PRECISION: tl.constexpr,
    TERMS: tl.constexpr,
):
    """One tile of the bank: returns the sums, and how many words of verdicts there are."""
    s, t, b_tile, scale = products_with_bank(
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
        PAIR,
        FEATURES,
        WIDTH,
        BLOCK_N,
        BLOCK_M,
        PRECISION,
        MASKED,
    )
    if MASKED:
        # As in the bank pass: a choice keeps a product from being fused, unrounded, with the subtraction after it.
        inside = (start + tl.arange(0, BLOCK_M) < end)[None, :]
        s = tl.where(inside, s, LOWEST)
        if PAIR:
            t = tl.where(inside, t, LOWEST)
    if SEARCH:
        count = append_verdicts(
            words, line, count, capacity, s, limit, labels, own_label, start, end, LABELLED, MASKED, BLOCK_N, BLOCK_M
        )
    p_s = tl.exp2((s - s_center[:, None]) * s_factor[:, None] - s_rest[:, None])
    if PAIR:
        p_s -= tl.exp2((t - t_center[:, None]) * t_factor[:, None] - t_rest[:, None])
    weight = p_s * (scale * boost)
    if FEATURES != WIDTH:
        b_tile = load_rows(b_rows, start, end, FEATURES, out, BLOCK_M, OUT, MASKED)
    return weighted(weight, b_tile, sums, PRECISION, TERMS), count


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
    query_labels,
    bank_labels,
    limits,
    words,
    counts,
    line,
    capacity,
    num_splits,
    span,
    total,
    queries,
    rows,
    student_factor,
    teacher_factor,
    boost,
    PAIR: tl.constexpr,
    SEARCH: tl.constexpr,
    LABELLED: tl.constexpr,
    LEAN: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    PRECISION: tl.constexpr,
    TERMS: tl.constexpr,
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
    scales, labels = bank_scale + group * rows, bank_labels
    q = group * queries
    begin = split * span
    end = tl.minimum(begin + span, rows)

    s_tile = load_rows(s_rows, first, queries, FEATURES, 0, BLOCK_N, WIDTH)
    s_factor = load_vector(student_scale + q, first, queries, BLOCK_N) * student_factor
    step = tl.cast(total, tl.int64)
    s_center = load_vector(centers + q, first, queries, BLOCK_N)
    s_rest = load_vector(centers + step + q, first, queries, BLOCK_N)
    t_tile, t_factor, t_center, t_rest = s_tile, s_factor, s_center, s_rest
    if PAIR:
        t_tile = load_rows(t_rows, first, queries, FEATURES, 0, BLOCK_N, WIDTH)
        t_factor = load_vector(teacher_scale + q, first, queries, BLOCK_N) * teacher_factor
        t_center = load_vector(centers + 2 * step + q, first, queries, BLOCK_N)
        t_rest = load_vector(centers + 3 * step + q, first, queries, BLOCK_N)
    row = first + tl.arange(0, BLOCK_N)
    sums = tl.zeros((BLOCK_N, OUT), tl.float32)
    count = tl.zeros((BLOCK_N,), tl.int32)
    limit, own_label = s_rest, s_rest
    if SEARCH:
        limit = load_limits(limits + q, first, queries, BLOCK_N)
        words += (q + first) * line + split * capacity
        if LABELLED:
            labels += group * rows
            own_label = load_vector(query_labels + q, first, queries, BLOCK_N)

    whole = begin  # tiles up to here are taken without a mask
    if LEAN:
        whole = end - (end - begin) % BLOCK_M
    for masked in tl.static_range(2):
        for start in range(whole if masked else begin, end if masked else whole, BLOCK_M):
            sums, count = _take(
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
                out,
                start,
                end,
                s_factor,
                t_factor,
                s_center,
                s_rest,
                t_center,
                t_rest,
                boost,
                words,
                line,
                count,
                capacity,
                limit,
                sums,
                PAIR,
                SEARCH,
                LABELLED,
                masked == 1,
                FEATURES,
                BLOCK_N,
                BLOCK_M,
                WIDTH,
                OUT,
                PRECISION,
                TERMS,
            )
    place = (split * step + q + row)[:, None] * FEATURES + out + tl.arange(0, OUT)[None, :]
    tl.store(partial + place, sums, mask=(row < queries)[:, None])
    if SEARCH:
        tl.store(counts + split * step + q + row, count, mask=row < queries)


def student_gradient(
    student: Rows,
    teacher: Rows | None,
    bank: Rows,
    tile: Tile,
    raw: Tensor,
    centers: Tensor,
    student_temp: float,
    teacher_temp: float,
    normalize: bool,
    search: Search | None = None,
) -> Partial:
    """The gradient of each row's divergence in the raw student rows ``raw``, in parts; with a ``search`` its verdicts.

    Without a teacher it is the gradient of the student's log-sum-exp.
    """
    groups, queries, features = student.data.shape
    rows, device = bank.data.shape[1], raw.device
    out = tile.out(features)
    blocks = groups * -(-queries // tile.block_n) * (features // out)
    num_splits, span = splits(processors(device), blocks, rows, tile.block_m)
    partial = torch.empty((num_splits, groups, queries, features), dtype=torch.float32, device=device)
    one_term = raw.dtype == torch.bfloat16 and bank.data.dtype == torch.float16
    factor = BOOST if one_term else boost(normalize)
    words = None if search is None else search.new_words(num_splits, tile.block_m)
    with on_device(raw):
        _student_grad[(blocks * num_splits,)](
            student.data,
            student.scale,
            (teacher or student).data,
            (teacher or student).scale,
            bank.data,
            bank.scale,
            partial,
            centers,
            student.labels,
            bank.labels,
            search and search.limits,
            words and words.words,
            words and words.counts,
            words.line if words else 0,
            words.capacity if words else 0,
            num_splits,
            span,
            groups * queries,
            queries,
            rows,
            LOG2E / student_temp,
            LOG2E / teacher_temp,
            factor,
            PAIR=teacher is not None,
            SEARCH=search is not None,
            LABELLED=search is not None and bank.labels is not None,
            LEAN=lean(normalize, student_temp, teacher_temp),
            FEATURES=features,
            BLOCK_N=tile.block_n,
            BLOCK_M=tile.block_m,
            WIDTH=tile.width,
            OUT=out,
            PRECISION=float32_precision(),
            TERMS=1 if one_term else 2,
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=True,
        )
    return Partial(partial, 1.0 / (student_temp * factor))
