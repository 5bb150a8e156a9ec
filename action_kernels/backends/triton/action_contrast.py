"""Both softmaxes over the bank, their divergence with its gradients, and the hard negatives.

A gradient is one more pass, :mod:`.student_gradient` or :mod:`.bank_gradient`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..interface import ContrastResult
from ..thresholds import AS_THEY_ARE
from .bank_gradient import bank_gradient
from .bank_pass import bank_pass
from .finish_and_collect import finish_and_collect
from .merge_and_limit import merge_and_limit
from .rows import prepare_all, rows_dtype
from .search import Search
from .statistics import centers_of
from .student_gradient import student_gradient
from .tiles import bank_pass_tile, selection_tile, student_grad_tile
from .verdicts import verdicts


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
    with_statistics: bool,
) -> ContrastResult:
    kind = student.shape[2], rows_dtype(normalize, student, teacher, bank), student.device
    tile = bank_pass_tile(*kind)
    search = None
    if k:
        search = Search(k, student, bank, query_labels, bank_labels, normalize, tile, selection_tile(*kind))
    limited = search if search and search.by_limits else None
    placement, labels, measured = AS_THEY_ARE, None, False
    if search:
        placement, labels, measured = search.placement, search.labels, search.measured
    student_rows, teacher_rows, bank_rows = prepare_all(
        normalize, student, teacher, bank, placement=placement, labels=labels, measured=measured
    )
    rows = student_rows, teacher_rows, bank_rows
    temps = student_temp, teacher_temp
    sums, maxima = bank_pass(*rows, tile, *temps, normalize, limited)
    merged = merge_and_limit(sums, maxima, *rows, *temps, with_statistics, with_student_grad, limited)
    assert merged.kl is not None  # there is a teacher
    del sums, maxima  # their memory is there again for the verdicts
    grad_tile = student_grad_tile(*kind, verdicts=limited is not None)
    # A gradient whose columns are split repeats the products, and would repeat the verdicts.
    padded = student_rows.data.shape[2]
    along = limited if with_student_grad and grad_tile.out(padded) == padded else None
    if limited and not along:
        verdicts(student_rows, bank_rows, tile, limited)
    partial = None
    if merged.centers is not None:
        partial = student_gradient(*rows, grad_tile, student, merged.centers, *temps, normalize, along)
    student_grad = finish_and_collect(partial, student, normalize, student_rows, bank_rows, limited)
    del partial  # likewise, for the buffers
    if search:
        similarity, index = search.result(student_rows, bank_rows)
    else:
        shape = (*student.shape[:2], 0)
        similarity, index = (student.new_empty(shape, dtype=dtype) for dtype in (torch.float32, torch.int64))
    statistics = student.new_empty(0, dtype=torch.float64) if merged.statistics is None else merged.statistics
    return ContrastResult(merged.kl, statistics, student_grad, similarity, index)


def action_contrast_student_gradient(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    lses: Tensor,
    student_temp: float,
    teacher_temp: float,
    normalize: bool,
) -> Tensor:
    student_rows, teacher_rows, bank_rows = prepare_all(normalize, student, teacher, bank)
    temps = student_temp, teacher_temp
    centers = centers_of(student_rows.scale, teacher_rows.scale, lses, *temps)
    tile = student_grad_tile(student.shape[2], rows_dtype(normalize, student, teacher, bank), student.device)
    partial = student_gradient(student_rows, teacher_rows, bank_rows, tile, student, centers, *temps, normalize)
    return finish_and_collect(partial, student, normalize)


def action_contrast_bank_gradient(
    grad_kl: Tensor,
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    statistics: Tensor,
    student_temp: float,
    teacher_temp: float,
    normalize: bool,
) -> Tensor:
    student_rows, teacher_rows, bank_rows = prepare_all(normalize, student, teacher, bank)
    rows = student_rows, teacher_rows, bank_rows
    return bank_gradient(grad_kl, *rows, bank, statistics, student_temp, teacher_temp, normalize)
