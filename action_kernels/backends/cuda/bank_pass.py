"""The first pass over the bank: the softmaxes' sums, the divergence between two of them, and the group maxima."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..gpu import Statistics, splits
from .library import bind, processors
from .plan import TILE, sharers, tiles
from .rows import Rows
from .search import Search


class BankPassParams(NamedTuple):
    """As ``csrc/cuda/bank_pass.cu`` has them."""

    student: Tensor
    student_scale: Tensor
    teacher: Tensor | None
    teacher_scale: Tensor | None
    bank: Tensor
    bank_scale: Tensor
    tf32: bool
    num_splits: int
    span: int
    student_temp: float
    teacher_temp: float
    query_labels: Tensor | None
    bank_labels: Tensor | None
    tiles_of_group: int
    statistics: Tensor | None
    maxima: Tensor | None


class MergeSplitsParams(NamedTuple):
    """As ``csrc/cuda/statistics.cu`` has them."""

    statistics: Tensor
    student_temp: float
    teacher_temp: float
    kl: Tensor
    logit_gap: Tensor
    student_lse: Tensor
    teacher_lse: Tensor


class MergeOneParams(NamedTuple):
    """As ``csrc/cuda/statistics.cu`` has them."""

    statistics: Tensor
    temp: float
    lse: Tensor


_bank_pass = bind("bank_pass", BankPassParams)
_merge_one = bind("merge_one", MergeOneParams)
_merge_splits = bind("merge_splits", MergeSplitsParams)


def bank_pass(
    student: Rows,
    teacher: Rows | None,
    bank: Rows,
    tf32: bool,
    student_temp: float = 1.0,
    teacher_temp: float = 1.0,
    search: Search | None = None,
    with_lse: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Sums [6, num_splits, G, N] for :func:`merge_splits`, if there is a teacher; maxima [G, N, groups] of a search.

    ``with_lse``: without a teacher and a search, sums [2, num_splits, G, N] for :func:`merge_one`.
    """
    groups, queries, _ = student.data.shape
    rows, device = bank.data.shape[1], student.data.device
    size = search.tiles_of_group if search else 1
    num_splits, span = splits(processors(device), groups * tiles(queries), rows, TILE * size)
    statistics = maxima = None
    if teacher is not None or with_lse:
        statistics = torch.empty(
            (2 if teacher is None else 6, num_splits, groups, queries), dtype=torch.float32, device=device
        )
    if search:
        line = sharers(student.data.dtype, tf32) * -(-tiles(rows) // size)
        maxima = torch.empty((groups, queries, line), dtype=torch.float32, device=device)
    _bank_pass(
        BankPassParams(
            student=student.data,
            student_scale=student.scale,
            teacher=None if teacher is None else teacher.data,
            teacher_scale=None if teacher is None else teacher.scale,
            bank=bank.data,
            bank_scale=bank.scale,
            tf32=tf32,
            num_splits=num_splits,
            span=span,
            student_temp=student_temp,
            teacher_temp=teacher_temp,
            query_labels=search.query_labels if search else None,
            bank_labels=bank.labels,
            tiles_of_group=size if search else 0,
            statistics=statistics,
            maxima=maxima,
        ),
        student.data,
    )
    return statistics, maxima


def merge_one(statistics: Tensor, temp: float) -> Tensor:
    """The log-sum-exp [G, N] float64 from the splits' sums [2, num_splits, G, N]."""
    lse = torch.empty(statistics.shape[2:], dtype=torch.float64, device=statistics.device)
    _merge_one(MergeOneParams(statistics=statistics, temp=temp, lse=lse), statistics)
    return lse


def merge_splits(statistics: Tensor, student_temp: float, teacher_temp: float) -> Statistics:
    """The splits' sums [6, num_splits, G, N] together."""
    _, _, groups, queries = statistics.shape
    merged = Statistics.empty(groups, queries, statistics.device)
    _merge_splits(
        MergeSplitsParams(
            statistics=statistics,
            student_temp=student_temp,
            teacher_temp=teacher_temp,
            kl=merged.kl,
            logit_gap=merged.logit_gap,
            student_lse=merged.student_lse,
            teacher_lse=merged.teacher_lse,
        ),
        statistics,
    )
    return merged
