"""One pass over the bank: both log-sum-exps, the divergence between the two softmaxes, and the selection.

A program keeps a block of queries and walks through its split of the bank. Similarities stay in registers. Running
maxima are kept as similarities, not logits: (x - max) is then exact wherever it matters, at any temperature.
Splits are merged afterwards, so that few queries against a long bank still fill a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ..gpu import EMPTY, Statistics, splits
from .launch import LOG2E, float32_precision, kernel, on_device, processors
from .products import load_rows, load_vector, pair_products
from .rows import Rows
from .selection import LOWEST, append, buffer_shape, clear
from .statistics import merge
from .tiles import Tile

LINES = 128  # queries with a selection buffer, per multiprocessor: more programs would hardly be resident


class BankPass(NamedTuple):
    """The results of a pass over the bank."""

    statistics: Statistics | None  # of the softmaxes
    keys: Tensor | None  # [G, N, any number] candidates among which the selection is


@kernel
def _bank_pass(
    student,
    student_scale,
    teacher,
    teacher_scale,
    bank,
    bank_scale,
    statistics,
    query_labels,
    bank_labels,
    keys,
    buffer,
    counts,
    thresholds,
    works,
    num_splits,
    span,
    total,
    queries,
    rows,
    student_factor,
    teacher_factor,
    k,
    limit,
    capacity,
    DISTILL: tl.constexpr,
    SELECT: tl.constexpr,
    LABELLED: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # The selection needs scratch per program, so a limited number of programs takes all the pieces of work in turn.
    for work in range(tl.program_id(0), works, tl.num_programs(0)):
        split = work % num_splits
        blocks = tl.cdiv(queries, BLOCK_N)
        first = work // num_splits % blocks * BLOCK_N
        group = tl.cast(work // num_splits // blocks, tl.int64)
        s_rows, t_rows = student + group * queries * FEATURES, teacher + group * queries * FEATURES
        b_rows = bank + group * rows * FEATURES
        begin = split * span
        end = tl.minimum(begin + span, rows)

        s_scale = load_vector(student_scale + group * queries, first, queries, BLOCK_N)
        s_tile = load_rows(s_rows, first, queries, FEATURES, 0, BLOCK_N, WIDTH)
        s_max = tl.full((BLOCK_N,), LOWEST, tl.float32)
        t_tile, t_scale, t_max = s_tile, s_scale, s_max
        if DISTILL:
            t_scale = load_vector(teacher_scale + group * queries, first, queries, BLOCK_N)
            t_tile = load_rows(t_rows, first, queries, FEATURES, 0, BLOCK_N, WIDTH)
        s_sum = tl.zeros((BLOCK_N,), tl.float32)
        t_sum = tl.zeros((BLOCK_N,), tl.float32)
        s_there = tl.zeros((BLOCK_N,), tl.float32)  # the student's similarity where the teacher's is largest
        gap = tl.zeros((BLOCK_N,), tl.float32)
        row = first + tl.arange(0, BLOCK_N)
        if SELECT:
            count = tl.zeros((BLOCK_N,), tl.int32)
            threshold = tl.where(row < queries, LOWEST, float("inf"))
            line = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N
            if LABELLED:
                own_label = load_vector(query_labels + group * queries, first, queries, BLOCK_N)

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
                DISTILL,
                FEATURES,
                WIDTH,
                BLOCK_N,
                BLOCK_M,
                PRECISION,
            )
            column = start + tl.arange(0, BLOCK_M)
            inside = (column < end)[None, :]
            b_scale = load_vector(bank_scale + group * rows, start, end, BLOCK_M)[None, :]
            s = tl.where(inside, s * s_scale[:, None] * b_scale, LOWEST)
            if DISTILL:
                t = tl.where(inside, t * t_scale[:, None] * b_scale, LOWEST)
                t_best = tl.max(t, 1)
                s_best = tl.max(tl.where(t == t_best[:, None], s, LOWEST), 1)
                there = tl.where(t_best > t_max, s_best, s_there)
                s_top, t_top = tl.maximum(s_max, tl.max(s, 1)), tl.maximum(t_max, t_best)
                t_logit = (t - t_top[:, None]) * teacher_factor
                t_shift, there_shift = (t_max - t_top) * teacher_factor, (s_there - there) * student_factor
                t_decay, p = tl.exp2(t_shift), tl.exp2(t_logit)
                # gap = sum of p (t_logit - s_logit), the student's logits relative to that of the teacher's best row:
                # when the references move, so does every difference in it. No weight, no term: at the smallest
                # temperatures a logit that counts for nothing is infinite.
                term = tl.where(p == 0.0, 0.0, p * (t_logit - (s - there[:, None]) * student_factor))
                moved = tl.where(t_decay == 0.0, 0.0, t_decay * (gap + t_sum * (t_shift - there_shift)))
                gap = moved + tl.sum(term, 1)
                t_sum = t_decay * t_sum + tl.sum(p, 1)
                s_decay = tl.exp2((s_max - s_top) * student_factor)
                s_sum = s_decay * s_sum + tl.sum(tl.exp2((s - s_top[:, None]) * student_factor), 1)
                s_max, t_max, s_there = s_top, t_top, there
            if SELECT:
                # Later rows lose ties, so that only a larger similarity than the k-th best so far can enter.
                better = s > threshold[:, None]
                if LABELLED:
                    label = load_vector(bank_labels + group * rows, start, end, BLOCK_M)[None, :]
                    better = better & (label >= 0) & (label != own_label[:, None])
                if tl.max(tl.max(better.to(tl.int32), 1), 0) > 0:
                    count = append(buffer + line * capacity, count, s, column, better, capacity, BLOCK_N)
                    if tl.max(count, 0) > capacity - BLOCK_M:
                        count, threshold = clear(
                            buffer + line * capacity,
                            counts + line,
                            thresholds + line,
                            count,
                            threshold,
                            buffer + line * capacity,
                            capacity,
                            k,
                            limit,
                            capacity,
                            BLOCK_N,
                        )

        if DISTILL:
            place = statistics + tl.cast(split, tl.int64) * total + group * queries + row
            step = tl.cast(num_splits, tl.int64) * total
            tl.store(place, s_max, mask=row < queries)
            tl.store(place + step, s_sum, mask=row < queries)
            tl.store(place + 2 * step, t_max, mask=row < queries)
            tl.store(place + 3 * step, t_sum, mask=row < queries)
            tl.store(place + 4 * step, gap, mask=row < queries)
            tl.store(place + 5 * step, s_there, mask=row < queries)
        if SELECT:
            clear(
                buffer + line * capacity,
                counts + line,
                thresholds + line,
                count,
                threshold,
                keys + ((group * queries + first) * num_splits + split) * k,
                num_splits * k,
                k,
                k,
                capacity,
                BLOCK_N,
            )


def bank_pass(
    student: Rows,
    teacher: Rows | None,
    bank: Rows,
    tile: Tile,
    k: int,
    student_temp: float = 1.0,
    teacher_temp: float = 1.0,
    query_labels: Tensor | None = None,
    bank_labels: Tensor | None = None,
) -> BankPass:
    """The pass over the bank. Without a teacher there is only a selection, with k = 0 none."""
    groups, queries, features = student.data.shape
    rows, device = bank.data.shape[1], student.data.device
    blocks = groups * -(-queries // tile.block_n)
    num_splits, span = splits(processors(device), blocks, rows, tile.block_m)
    works = programs = blocks * num_splits

    statistics = keys = buffer = counts = thresholds = None
    kept, limit, capacity = min(k, span), 0, 0
    if teacher is not None:
        statistics = torch.empty((6, num_splits, groups, queries), dtype=torch.float32, device=device)
    if k > 0:
        programs = min(works, max(1, LINES // tile.block_n) * processors(device))
        capacity, limit = buffer_shape(kept, tile.block_m)
        buffer = torch.empty((programs, tile.block_n, capacity), dtype=torch.int64, device=device)
        counts = torch.empty((programs, tile.block_n), dtype=torch.int32, device=device)
        thresholds = torch.empty((programs, tile.block_n), dtype=torch.float32, device=device)
        keys = torch.full((groups, queries, num_splits * kept), EMPTY, dtype=torch.int64, device=device)
        if query_labels is not None and bank_labels is not None:
            query_labels, bank_labels = query_labels.contiguous(), bank_labels.contiguous()
    with on_device(student.data):
        _bank_pass[(programs,)](
            *student,
            *(teacher or student),
            *bank,
            statistics,
            query_labels,
            bank_labels,
            keys,
            buffer,
            counts,
            thresholds,
            works,
            num_splits,
            span,
            groups * queries,
            queries,
            rows,
            LOG2E / student_temp,
            LOG2E / teacher_temp,
            kept,
            limit,
            capacity,
            DISTILL=teacher is not None,
            SELECT=k > 0,
            LABELLED=query_labels is not None,
            FEATURES=features,
            BLOCK_N=tile.block_n,
            BLOCK_M=tile.block_m,
            WIDTH=tile.width,
            PRECISION=float32_precision(),
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=True,
        )
    if statistics is None:
        return BankPass(None, keys)
    return BankPass(merge(statistics, student_temp, teacher_temp), keys)
