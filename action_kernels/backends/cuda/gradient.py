"""A gradient in the student or in the whole bank: one more pass, with the probabilities from saved log-sum-exps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..gpu import largest_finite, splits
from .library import bind, processors
from .plan import TERMS, TILE, tiles
from .rows import Rows
from .search import Search


class QueryTermsParams(NamedTuple):
    """As ``csrc/cuda/query_terms.cu`` has them."""

    student_scale: Tensor
    teacher_scale: Tensor | None
    student_lse: Tensor
    teacher_lse: Tensor | None
    upstream: Tensor
    logit_gap: Tensor | None
    largest: Tensor
    student_temp: float
    teacher_temp: float
    terms: Tensor
    factor: Tensor


class ContrastGradientParams(NamedTuple):
    """As ``csrc/cuda/gradient.cu`` has them."""

    for_bank: bool
    student: Tensor
    teacher: Tensor | None
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


def query_terms(
    upstream: Tensor,
    student: Rows,
    teacher: Rows | None,
    student_lse: Tensor,
    teacher_lse: Tensor | None,
    student_temp: float,
    teacher_temp: float,
    logit_gap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What the bank's gradient reads of every query [G, N padded, 12], and the factor [1] on all of its sums.

    Without a teacher the gradient is that of ``student_lse``, and there is no ``logit_gap``.
    """
    device = student_lse.device
    terms = torch.empty((*student.scale.shape, TERMS), dtype=torch.float32, device=device)
    factor = torch.empty(1, dtype=torch.float32, device=device)
    _query_terms(
        QueryTermsParams(
            student_scale=student.scale,
            teacher_scale=None if teacher is None else teacher.scale,
            student_lse=student_lse,
            teacher_lse=teacher_lse,
            upstream=upstream,
            logit_gap=logit_gap,
            largest=largest_finite(upstream.abs()),
            student_temp=student_temp,
            teacher_temp=teacher_temp,
            terms=terms,
            factor=factor,
        ),
        terms,
    )
    return terms, factor


def gradient(
    student: Rows,
    teacher: Rows | None,
    bank: Rows,
    tf32: bool,
    for_bank: bool,
    terms: Tensor,
    student_temp: float,
    teacher_temp: float,
    grad_scales: tuple[float, float, float],
    search: Search | None = None,
) -> Tensor:
    """Partial sums [num_splits, G, rows, padded D] of the gradient in the bank's rows or the student's.

    It is the divergence's, or without a teacher that of the student's log-sum-exp. With a ``search``, its verdicts come
    along with the divergence's gradient in the student.
    """
    groups, queries, width = student.data.shape
    kept, streamed = (bank.data.shape[1], queries) if for_bank else (queries, bank.data.shape[1])
    columns = -(-width * student.data.itemsize // 256)  # blocks that share them
    num_splits, span = splits(processors(terms.device), groups * tiles(kept) * columns, streamed, TILE)
    partial = torch.empty((num_splits, groups, kept, width), dtype=torch.float32, device=terms.device)
    student_grad_scale, teacher_grad_scale, factor = grad_scales
    words = search.new_words(num_splits) if search else None
    _contrast_gradient(
        ContrastGradientParams(
            for_bank=for_bank,
            student=student.data,
            teacher=None if teacher is None else teacher.data,
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
