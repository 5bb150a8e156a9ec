"""Both softmaxes over the bank, their divergence with its gradients, and the hard negatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..gpu import Partial, boost
from ..interface import ContrastResult
from .bank_pass import bank_pass
from .finish_and_collect import finish_and_collect
from .gradient import gradient, query_terms
from .merge_and_limit import merge_and_limit
from .rows import prepare_all
from .search import Search
from .verdicts import verdicts

_LOG2E = math.log2(math.e)


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
    rows, tf32 = prepare_all(normalize, student, teacher, bank, **search.prepared() if search else {})
    student_rows, teacher_rows, bank_rows = rows
    temps = student_temp, teacher_temp
    sums, maxima = bank_pass(student_rows, teacher_rows, bank_rows, tf32, *temps, limited)
    merged = merge_and_limit(sums, maxima, student_rows, teacher_rows, *temps, with_student_grad, limited)
    assert merged.statistics is not None  # there is a teacher
    del sums, maxima  # their memory is there again for the verdicts
    if limited and not with_student_grad:
        verdicts(student_rows, bank_rows, tf32, limited)
    partial = None
    if merged.terms is not None:
        factor = boost(normalize)
        terms, scales = merged.terms, (0.0, 0.0, factor)
        parts = gradient(student_rows, teacher_rows, bank_rows, tf32, False, terms, *temps, scales, limited)
        partial = Partial(parts, 1.0 / (student_temp * factor))
        del parts
    student_grad = finish_and_collect(partial, student, normalize, student_rows, bank_rows, tf32, limited)
    del partial  # likewise, for the buffers
    if search:
        similarity, index = search.finish(student_rows, bank_rows, tf32)
    else:
        shape = (*student.shape[:2], 0)
        similarity, index = (student.new_empty(shape, dtype=dtype) for dtype in (torch.float32, torch.int64))
    return ContrastResult(*merged.statistics, student_grad, similarity, index)


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
    (student_rows, teacher_rows, bank_rows), tf32 = prepare_all(normalize, student, teacher, bank)
    lses, temps = (student_lse.contiguous(), teacher_lse.contiguous()), (student_temp, teacher_temp)
    upstream = grad_kl.contiguous()
    terms, factor = query_terms(upstream, student_rows, teacher_rows, *lses, *temps, logit_gap.contiguous())
    temp = min(temps)  # applied at the end, like the factor
    grad_scales = temp / student_temp, temp / teacher_temp / _LOG2E, boost(normalize)
    parts = gradient(student_rows, teacher_rows, bank_rows, tf32, True, terms, *temps, grad_scales)
    return finish_and_collect(Partial(parts, 1.0 / (temp * boost(normalize)), factor), bank, normalize)
