"""Between the passes, one launch: splits' sums become statistics, group maxima become the selection's limits.

Neither reads what the other writes: the first programs do the one, the others the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from .launch import INTERPRETED, kernel, on_device, power_of_two
from .rows import Rows
from .search import Search
from .statistics import BLOCK, merge_one, merge_pair, reciprocal
from .thresholds import find_limits


@kernel
def _merge_and_limit(
    merging,
    student_scale,
    total,
    sums=None,
    teacher_scale=None,
    kl=None,
    statistics=None,
    centers=None,
    num_splits=None,
    student_high=None,
    student_low=None,
    teacher_high=None,
    teacher_low=None,
    maxima=None,
    largest=None,
    bank_largest=None,
    query_labels=None,
    limits=None,
    flags=None,
    queries=None,
    bank_blocks=None,
    features=None,
    line=None,
    k=None,
    enough=None,
    error=None,
    BLOCK: tl.constexpr = None,
    BLOCK_Q: tl.constexpr = None,
    COLUMNS: tl.constexpr = None,
):
    block = tl.program_id(0)
    if block < merging:
        if teacher_scale is not None:
            merge_pair(
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
                BLOCK,
            )
        elif sums is not None:
            merge_one(
                block, sums, student_scale, statistics, centers, num_splits, total, student_high, student_low, BLOCK
            )
    else:
        if maxima is not None:
            find_limits(
                block - merging,
                maxima,
                student_scale,
                largest,
                bank_largest,
                query_labels,
                limits,
                flags,
                queries,
                bank_blocks,
                features,
                total,
                line,
                k,
                enough,
                error,
                BLOCK_Q,
                COLUMNS,
            )


class Merged(NamedTuple):
    """What is known after the first pass."""

    kl: Tensor | None  # [G, N] of two softmaxes
    statistics: Tensor | None  # [3, G, N] float64 of two, where they are wanted; [G, N] of one
    centers: Tensor | None  # [4, G, N] of two, or [2, G, N]: see :class:`.statistics.Terms`


def merge_and_limit(
    sums: Tensor | None,
    maxima: Tensor | None,
    student: Rows,
    teacher: Rows | None,
    bank: Rows,
    student_temp: float = 1.0,
    teacher_temp: float = 1.0,
    with_statistics: bool = True,
    with_centers: bool = False,
    search: Search | None = None,
) -> Merged:
    """What the first pass has left, put together.

    Args:
        sums: [6, num_splits, G, N], or [2, num_splits, G, N] without a teacher.
        maxima: [G, N, line] of a ``search``.
        student: the queries.
        teacher: likewise.
        bank: the bank.
        student_temp: of the softmax.
        teacher_temp: likewise.
        with_statistics: whether a gradient behind the forward pass may come.
        with_centers: whether the student's gradient comes next.
        search: gets its limits.
    """
    groups, queries, _ = student.data.shape
    device, total = student.data.device, groups * queries
    merging, limiting, warps = 0, 0, 4
    kl = statistics = centers = None
    arguments: dict[str, Any] = {}
    if sums is not None:
        merging = -(-total // BLOCK)
        if with_centers:
            lines = 2 if teacher is None else 4
            centers = torch.empty((lines, groups, queries), dtype=torch.float32, device=device)
        student_high, student_low = reciprocal(student_temp)
        arguments |= {
            "sums": sums,
            "centers": centers,
            "num_splits": sums.shape[1],
            "student_high": student_high,
            "student_low": student_low,
            "BLOCK": BLOCK,
        }
        if with_statistics:
            shape = (groups, queries) if teacher is None else (3, groups, queries)
            statistics = torch.empty(shape, dtype=torch.float64, device=device)
        if teacher is not None:
            kl = torch.empty((groups, queries), dtype=torch.float32, device=device)
            teacher_high, teacher_low = reciprocal(teacher_temp)
            arguments |= {"teacher_scale": teacher.scale, "teacher_high": teacher_high, "teacher_low": teacher_low}
    if search is not None and maxima is not None:
        line = maxima.shape[2]
        columns = power_of_two(min(line, max(4 * search.k, 256)))
        block_q = max(1, (1 << 16 if INTERPRETED else 1 << 11) // columns)
        limiting, warps = -(-total // block_q), 4 if columns <= 2048 else 8
        limits, flags = search.new_limits()
        arguments |= {
            "maxima": maxima,
            "largest": student.largest,
            "bank_largest": bank.largest,
            "query_labels": student.labels,
            "limits": limits,
            "flags": flags,
            "queries": queries,
            "bank_blocks": 0 if bank.largest is None else bank.largest.shape[1],
            "features": search.features,
            "line": line,
            "k": search.k,
            "enough": search.k + search.k // 16,
            "error": search.error(student),
            "BLOCK_Q": block_q,
            "COLUMNS": columns,
        }
    with on_device(student.data):
        _merge_and_limit[(merging + limiting,)](
            merging, student.scale, total, kl=kl, statistics=statistics, **arguments, num_warps=warps
        )
    return Merged(kl, statistics, centers)
