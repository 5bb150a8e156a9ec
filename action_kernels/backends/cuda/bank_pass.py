"""One pass over the bank: both softmaxes' sums, the divergence between them, and candidates for the selection."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..gpu import Statistics
from .library import bind, processors
from .plan import TILE, plan
from .rows import Rows


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
    kept: int
    limit: int
    quota: int
    buffer: Tensor | None
    floors: Tensor | None
    statistics: Tensor | None
    keys: Tensor | None


class MergeSplitsParams(NamedTuple):
    """As ``csrc/cuda/statistics.cu`` has them."""

    statistics: Tensor
    student_temp: float
    teacher_temp: float
    kl: Tensor
    logit_gap: Tensor
    student_lse: Tensor
    teacher_lse: Tensor


_bank_pass = bind("bank_pass", BankPassParams)
_merge_splits = bind("merge_splits", MergeSplitsParams)


def bank_pass(
    student: Rows,
    teacher: Rows | None,
    bank: Rows,
    tf32: bool,
    k: int,
    student_temp: float = 1.0,
    teacher_temp: float = 1.0,
    query_labels: Tensor | None = None,
    bank_labels: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Sums [6, num_splits, G, N] for :func:`merge_splits`, if there is a teacher; keys [G, N, any number]."""
    groups, queries, _ = student.data.shape
    device = student.data.device
    planned = plan(processors(device), groups, queries, bank.data.shape[1], k)
    num_splits = planned.num_splits
    statistics = buffer = floors = None
    if teacher is not None:
        statistics = torch.empty((6, num_splits, groups, queries), dtype=torch.float32, device=device)
    keys = torch.empty((groups, queries, num_splits * planned.kept), dtype=torch.int64, device=device)
    if k > 0:
        buffer = torch.empty((planned.running, TILE, planned.capacity), dtype=torch.int64, device=device)
        if num_splits > 1:  # what the splits tell each other
            floors = torch.full((groups, queries, num_splits), -(2**31), dtype=torch.int32, device=device)
    if query_labels is None or bank_labels is None:
        query_labels = bank_labels = None
    else:
        query_labels, bank_labels = query_labels.contiguous(), bank_labels.contiguous()
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
            span=planned.span,
            student_temp=student_temp,
            teacher_temp=teacher_temp,
            query_labels=query_labels,
            bank_labels=bank_labels,
            kept=planned.kept,
            limit=planned.limit,
            quota=planned.quota,
            buffer=buffer,
            floors=floors,
            statistics=statistics,
            keys=keys,
        ),
        student.data,
    )
    return statistics, keys


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
