"""Between the passes, one launch: splits' sums become statistics, group maxima become the selection's limits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..gpu import Statistics
from .library import bind
from .plan import TERMS
from .rows import Rows
from .search import Search


class MergeAndLimitParams(NamedTuple):
    """As ``csrc/cuda/merge_and_limit.cu`` has them."""

    sums: Tensor | None
    student_scale: Tensor | None
    teacher_scale: Tensor | None
    student_temp: float
    teacher_temp: float
    kl: Tensor | None
    logit_gap: Tensor | None
    student_lse: Tensor | None
    teacher_lse: Tensor | None
    terms: Tensor | None
    maxima: Tensor | None
    query_largest: Tensor | None
    longest: Tensor | None
    features: int
    query_labels: Tensor | None
    k: int
    error: float
    limits: Tensor | None
    found: Tensor | None


_merge_and_limit = bind("merge_and_limit", MergeAndLimitParams)


class Merged(NamedTuple):
    """What is known after the first pass."""

    statistics: Statistics | None  # of two softmaxes
    lse: Tensor | None  # [G, N] float64 of one
    terms: Tensor | None  # [G, N padded, 12] of every query, for the student's gradient


def merge_and_limit(
    sums: Tensor | None,
    maxima: Tensor | None,
    student: Rows,
    teacher: Rows | None,
    student_temp: float = 1.0,
    teacher_temp: float = 1.0,
    with_terms: bool = False,
    search: Search | None = None,
) -> Merged:
    """What the first pass has left, put together.

    Args:
        sums: [6, num_splits, G, N], or [2, num_splits, G, N] without a teacher.
        maxima: [G, N, groups] of a ``search``.
        student: the queries.
        teacher: likewise.
        student_temp: of the softmax.
        teacher_temp: likewise.
        with_terms: whether the student's gradient comes next.
        search: gets its limits.
    """
    groups, queries, _ = student.data.shape
    device = student.data.device
    statistics = lse = terms = limits = found = None
    if sums is not None:
        if teacher is None:
            lse = torch.empty((groups, queries), dtype=torch.float64, device=device)
        else:
            statistics = Statistics.empty(groups, queries, device)
        if with_terms:
            terms = torch.empty((*student.scale.shape, TERMS), dtype=torch.float32, device=device)
    limiting = search if maxima is not None else None
    lengths = limiting.lengths if limiting else None
    if limiting:
        limits, found = limiting.new_limits()
    _merge_and_limit(
        MergeAndLimitParams(
            sums=sums,
            student_scale=student.scale,
            teacher_scale=None if teacher is None else teacher.scale,
            student_temp=student_temp,
            teacher_temp=teacher_temp,
            kl=statistics and statistics.kl,
            logit_gap=statistics and statistics.logit_gap,
            student_lse=statistics.student_lse if statistics else lse,
            teacher_lse=statistics and statistics.teacher_lse,
            terms=terms,
            maxima=maxima,
            query_largest=lengths and lengths.query,
            longest=lengths and lengths.longest,
            features=limiting.features if limiting else 0,
            query_labels=limiting.query_labels if limiting else None,
            k=limiting.k if limiting else 0,
            error=limiting.error(student) if limiting else 0.0,
            limits=limits,
            found=found,
        ),
        student.data,
    )
    return Merged(statistics, lse, terms)
