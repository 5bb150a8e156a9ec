"""The first pass over the bank: the softmaxes' sums, the divergence between two of them, and the group maxima."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..gpu import splits
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
    bank_largest: Tensor | None
    longest: Tensor | None


_bank_pass = bind("bank_pass", BankPassParams)


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
    """The sums of the bank's splits, and the best eligible similarity in each group of its rows.

    Sums are [6, num_splits, G, N] where there is a teacher, and [2, num_splits, G, N] with ``with_lse`` where there is
    none; maxima [G, N, groups] where there is a ``search``.
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
    lengths = search.lengths if search else None
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
            bank_largest=lengths and lengths.bank,
            longest=lengths and lengths.longest,
        ),
        student.data,
    )
    return statistics, maxima
