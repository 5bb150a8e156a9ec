"""Both softmaxes over the bank, their divergence with its gradients, and the hard negatives."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..gpu import boost, largest_finite, splits
from ..interface import ContrastResult
from ..thresholds import AS_THEY_ARE
from .bank_pass import bank_pass, merge_splits
from .library import bind, processors
from .plan import TILE, tiles
from .rows import Rows, finish_gradient, prepare_all
from .search import Search
from .verdicts import verdicts

_LOG2E = math.log2(math.e)
_TERMS = 12  # floats per query from which a gradient takes its probabilities


class QueryTermsParams(NamedTuple):
    """As ``csrc/cuda/statistics.cu`` has them."""

    student_scale: Tensor
    teacher_scale: Tensor
    student_lse: Tensor
    teacher_lse: Tensor
    grad_kl: Tensor | None
    logit_gap: Tensor | None
    largest: Tensor | None
    student_temp: float
    teacher_temp: float
    terms: Tensor
    factor: Tensor


class ContrastGradientParams(NamedTuple):
    """As ``csrc/cuda/action_contrast.cu`` has them."""

    for_bank: bool
    student: Tensor
    teacher: Tensor
    bank: Tensor
    bank_scale: Tensor
    terms: Tensor
    tf32: bool
    span: int
    student_temp: float
    teacher_temp: float
    student_grad_scale: float
    teacher_grad_scale: float
    boost: float
    partial: Tensor
    limits: Tensor | None
    query_labels: Tensor | None
    bank_labels: Tensor | None
    capacity: int
    words: Tensor | None
    counts: Tensor | None


_query_terms = bind("query_terms", QueryTermsParams)
_contrast_gradient = bind("contrast_gradient", ContrastGradientParams)


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
) -> ContrastResult:
    search = Search(k, student, bank, query_labels, bank_labels, normalize, teacher) if k else None
    limited = search if search and search.by_limits else None
    placement = search.placement if search else AS_THEY_ARE
    labels = limited.bank_labels if limited else None
    rows, tf32 = prepare_all(normalize, student, teacher, bank, placement=placement, labels=labels)
    student_rows, teacher_rows, bank_rows = rows
    temps = student_temp, teacher_temp
    sums, maxima = bank_pass(student_rows, teacher_rows, bank_rows, tf32, *temps, limited)
    assert sums is not None  # there is a teacher
    statistics = merge_splits(sums, *temps)
    if limited and maxima is not None:
        limited.set_limits(student_rows, bank_rows, maxima)
    del maxima  # their memory is there again for the verdicts
    # A gradient whose columns are split repeats the products, and would repeat the verdicts.
    along = limited if with_student_grad and _column_blocks(student_rows) == 1 else None
    if limited and not along:
        verdicts(student_rows, bank_rows, tf32, limited)
    student_grad = torch.empty(0, dtype=torch.float32, device=student.device)
    if with_student_grad:
        lses = statistics.student_lse, statistics.teacher_lse
        terms, _ = _terms(rows[0], rows[1], *lses, *temps)
        factor = boost(normalize)
        partial = _gradient(rows, tf32, False, terms, *temps, (0.0, 0.0, factor), along)
        student_grad = finish_gradient(partial, student, normalize, 1.0 / (student_temp * factor))
    if search:
        similarity, index = search.result(student_rows, bank_rows, tf32)
    else:
        shape = (*student.shape[:2], 0)
        similarity, index = (student.new_empty(shape, dtype=dtype) for dtype in (torch.float32, torch.int64))
    return ContrastResult(*statistics, student_grad, similarity, index)


def action_contrast_bank_gradient(
    grad_kl: Tensor,
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    logit_gap: Tensor,
    student_lse: Tensor,
    teacher_lse: Tensor,
    student_temp: float,
    teacher_temp: float,
    normalize: bool,
) -> Tensor:
    rows, tf32 = prepare_all(normalize, student, teacher, bank)
    lses = student_lse.contiguous(), teacher_lse.contiguous()
    terms, factor = _terms(
        rows[0], rows[1], *lses, student_temp, teacher_temp, grad_kl.contiguous(), logit_gap.contiguous()
    )
    temp = min(student_temp, teacher_temp)  # applied at the end, like the factor
    grad_scales = temp / student_temp, temp / teacher_temp / _LOG2E, boost(normalize)
    partial = _gradient(rows, tf32, True, terms, student_temp, teacher_temp, grad_scales)
    return finish_gradient(partial, bank, normalize, 1.0 / (temp * boost(normalize)), factor)


def _terms(
    student: Rows,
    teacher: Rows,
    student_lse: Tensor,
    teacher_lse: Tensor,
    student_temp: float,
    teacher_temp: float,
    grad_kl: Tensor | None = None,
    logit_gap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What a gradient reads of every query [G, N padded, 12], and the factor [1] on all of its sums."""
    device = student_lse.device
    terms = torch.empty((*student.scale.shape, _TERMS), dtype=torch.float32, device=device)
    factor = torch.empty(1, dtype=torch.float32, device=device)
    largest = None if grad_kl is None else largest_finite(grad_kl.abs())
    _query_terms(
        QueryTermsParams(
            student_scale=student.scale,
            teacher_scale=teacher.scale,
            student_lse=student_lse,
            teacher_lse=teacher_lse,
            grad_kl=grad_kl,
            logit_gap=logit_gap,
            largest=largest,
            student_temp=student_temp,
            teacher_temp=teacher_temp,
            terms=terms,
            factor=factor,
        ),
        terms,
    )
    return terms, factor


def _column_blocks(rows: Rows) -> int:
    """Blocks that share the columns of a gradient of rows of this width."""
    return -(-rows.data.shape[2] * rows.data.itemsize // 256)


def _gradient(
    rows: list[Rows],
    tf32: bool,
    for_bank: bool,
    terms: Tensor,
    student_temp: float,
    teacher_temp: float,
    grad_scales: tuple[float, float, float],
    search: Search | None = None,
) -> Tensor:
    """Partial sums [num_splits, G, rows, padded D] of the divergence's gradient in the bank's rows or the student's.

    With a ``search``, its verdicts come along with the student's.
    """
    student, teacher, bank = rows
    groups, queries, width = student.data.shape
    kept, streamed = (bank.data.shape[1], queries) if for_bank else (queries, bank.data.shape[1])
    columns = _column_blocks(student)
    num_splits, span = splits(processors(terms.device), groups * tiles(kept) * columns, streamed, TILE)
    partial = torch.empty((num_splits, groups, kept, width), dtype=torch.float32, device=terms.device)
    student_grad_scale, teacher_grad_scale, factor = grad_scales
    words = search.words(num_splits) if search else None
    _contrast_gradient(
        ContrastGradientParams(
            for_bank=for_bank,
            student=student.data,
            teacher=teacher.data,
            bank=bank.data,
            bank_scale=bank.scale,
            terms=terms,
            tf32=tf32,
            span=span,
            student_temp=student_temp,
            teacher_temp=teacher_temp,
            student_grad_scale=student_grad_scale,
            teacher_grad_scale=teacher_grad_scale,
            boost=factor,
            partial=partial,
            limits=words and words.limits,
            query_labels=words and words.query_labels,
            bank_labels=bank.labels if words else None,
            capacity=words.capacity if words else 0,
            words=words and words.words,
            counts=words and words.counts,
        ),
        terms,
    )
    return partial
