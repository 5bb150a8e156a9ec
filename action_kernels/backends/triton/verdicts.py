"""The second pass over the bank where no gradient is wanted: which rows may be among a query's k best."""

from __future__ import annotations

import triton
import triton.language as tl

from ..gpu import splits
from .launch import float32_precision, kernel, on_device, processors
from .products import load_rows, load_vector, products_with_bank
from .rows import Rows
from .search import Search
from .tiles import Tile
from .words import append_verdicts, load_limits


@triton.jit
def _take(
    query,
    tile,
    first,
    queries,
    b_rows,
    scales,
    labels,
    own_label,
    words,
    line,
    count,
    capacity,
    limit,
    start,
    end,
    LABELLED: tl.constexpr,
    MASKED: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    x, _, _, _ = products_with_bank(
        query,
        query,
        tile,
        tile,
        first,
        queries,
        b_rows,
        scales,
        start,
        end,
        False,
        FEATURES,
        WIDTH,
        BLOCK_N,
        BLOCK_M,
        PRECISION,
        MASKED,
    )
    return append_verdicts(
        words, line, count, capacity, x, limit, labels, own_label, start, end, LABELLED, MASKED, BLOCK_N, BLOCK_M
    )


@kernel
def _verdicts(
    student,
    bank,
    bank_scale,
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
    LABELLED: tl.constexpr,
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
    q = group * queries
    query, b_rows = student + q * FEATURES, bank + group * rows * FEATURES
    scales, labels = bank_scale + group * rows, bank_labels
    begin = split * span
    end = tl.minimum(begin + span, rows)
    tile = load_rows(query, first, queries, FEATURES, 0, BLOCK_N, WIDTH)
    row = first + tl.arange(0, BLOCK_N)
    limit = load_limits(limits + q, first, queries, BLOCK_N)
    own_label = limit
    if LABELLED:
        labels += group * rows
        own_label = load_vector(query_labels + q, first, queries, BLOCK_N)
    words += (q + first) * line + split * capacity
    count = tl.zeros((BLOCK_N,), tl.int32)
    whole = end - (end - begin) % BLOCK_M
    for masked in tl.static_range(2):
        for start in range(whole if masked else begin, end if masked else whole, BLOCK_M):
            count = _take(
                query,
                tile,
                first,
                queries,
                b_rows,
                scales,
                labels,
                own_label,
                words,
                line,
                count,
                capacity,
                limit,
                start,
                end,
                LABELLED,
                masked == 1,
                FEATURES,
                BLOCK_N,
                BLOCK_M,
                WIDTH,
                PRECISION,
            )
    tl.store(counts + tl.cast(split, tl.int64) * total + q + row, count, mask=row < queries)


def verdicts(student: Rows, bank: Rows, tile: Tile, search: Search) -> None:
    """Take the verdicts in a pass of their own."""
    groups, queries, features = student.data.shape
    rows, device = bank.data.shape[1], student.data.device
    blocks = groups * -(-queries // tile.block_n)
    num_splits, span = splits(processors(device), blocks, rows, tile.block_m)
    words = search.new_words(num_splits, tile.block_m)
    with on_device(student.data):
        _verdicts[(blocks * num_splits,)](
            student.data,
            bank.data,
            bank.scale,
            student.labels,
            bank.labels,
            search.limits,
            words.words,
            words.counts,
            words.line,
            words.capacity,
            num_splits,
            span,
            groups * queries,
            queries,
            rows,
            LABELLED=bank.labels is not None,
            FEATURES=features,
            BLOCK_N=tile.block_n,
            BLOCK_M=tile.block_m,
            WIDTH=tile.width,
            PRECISION=float32_precision(),
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=True,
        )
