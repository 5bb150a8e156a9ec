"""Both softmaxes over the bank, their divergence with its gradients, and the hard negatives."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..gpu import boost, largest_finite, splits
from ..interface import ContrastResult
from .bank_pass import bank_pass, merge_splits
from .library import bind, processors
from .plan import TILE, tiles
from .rows import Rows, finish_gradient, prepare_all
from .selection import in_order

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
    rows, tf32 = prepare_all(normalize, student, teacher, bank)
    student_rows, teacher_rows, bank_rows = rows
    sums, keys = bank_pass(
        student_rows, teacher_rows, bank_rows, tf32, k, student_temp, teacher_temp, query_labels, bank_labels
    )
    assert sums is not None  # there is a teacher
    statistics = merge_splits(sums, student_temp, teacher_temp)
    student_grad = torch.empty(0, dtype=torch.float32, device=student.device)
    if with_student_grad:
        lses = statistics.student_lse, statistics.teacher_lse
        terms, _ = _terms(rows[0], rows[1], *lses, student_temp, teacher_temp)
        factor = boost(normalize)
        partial = _gradient(rows, tf32, False, terms, student_temp, teacher_temp, (0.0, 0.0, factor))
        student_grad = finish_gradient(partial, student, normalize, 1.0 / (student_temp * factor))
    return ContrastResult(*statistics, student_grad, *in_order(keys, k))


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


def _gradient(
    rows: list[Rows],
    tf32: bool,
    for_bank: bool,
    terms: Tensor,
    student_temp: float,
    teacher_temp: float,
    grad_scales: tuple[float, float, float],
) -> Tensor:
    """Partial sums [num_splits, G, rows, padded D] of the divergence's gradient in the bank's rows or the student's."""
    student, teacher, bank = rows
    groups, queries, width = student.data.shape
    kept, streamed = (bank.data.shape[1], queries) if for_bank else (queries, bank.data.shape[1])
    columns = -(-width * student.data.itemsize // 256)  # blocks that share the columns of a result
    num_splits, span = splits(processors(terms.device), groups * tiles(kept) * columns, streamed, TILE)
    partial = torch.empty((num_splits, groups, kept, width), dtype=torch.float32, device=terms.device)
    student_grad_scale, teacher_grad_scale, factor = grad_scales
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
        ),
        terms,
    )
    return partial
