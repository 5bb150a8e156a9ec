"""Both softmaxes, their divergence with its gradients, and the hard negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from ...dtypes import working_dtype
from ...unit_rows import unit
from ..interface import ContrastResult
from .rows import raw_gradient
from .selection import largest
from .softmax import log_probability, log_softmax


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
    dtype = working_dtype(student, teacher, bank)
    bank_rows = unit(bank, normalize, dtype)
    student_similarity = unit(student, normalize, dtype) @ bank_rows.mT
    student_logits = student_similarity / student_temp
    teacher_logits = unit(teacher, normalize, dtype) @ bank_rows.mT / teacher_temp
    log_ps, student_lse = log_softmax(student_logits)
    log_pt, teacher_lse = log_softmax(teacher_logits)
    kl = (log_pt.exp() * (log_pt - log_ps)).sum(-1)
    if with_statistics:
        weight = log_pt.double().exp()
        gap = (weight * (teacher_logits.double() - student_logits.double())).sum(-1) / weight.sum(-1)
        statistics = torch.stack((student_lse, teacher_lse, gap))
    else:
        statistics = student_lse.new_empty(0, dtype=student_lse.dtype)
    if with_student_grad:
        grad = (log_ps.exp() - log_pt.exp()) @ bank_rows / student_temp
        student_grad = raw_gradient(grad, student, normalize)
    else:
        student_grad = kl.new_empty(0, dtype=kl.dtype)
    similarity, index = largest(student_similarity, k, query_labels, bank_labels)
    return ContrastResult(kl, statistics, student_grad, similarity, index)


def action_contrast_student_gradient(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    lses: Tensor,
    student_temp: float,
    teacher_temp: float,
    normalize: bool,
) -> Tensor:
    """What these bank rows contribute to d kl_i / d student_i, where the log-sum-exps run over more rows than these."""
    dtype = working_dtype(student, teacher, bank)
    bank_rows = unit(bank, normalize, dtype)
    student_logits = unit(student, normalize, dtype) @ bank_rows.mT / student_temp
    teacher_logits = unit(teacher, normalize, dtype) @ bank_rows.mT / teacher_temp
    ps = log_probability(student_logits, lses[0]).exp()
    pt = log_probability(teacher_logits, lses[1]).exp()
    return raw_gradient((ps - pt) @ bank_rows / student_temp, student, normalize)


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
    dtype = working_dtype(student, teacher, bank)
    bank_rows = unit(bank, normalize, dtype)
    student_rows = unit(student, normalize, dtype)
    teacher_rows = unit(teacher, normalize, dtype)
    student_logits = student_rows @ bank_rows.mT / student_temp
    teacher_logits = teacher_rows @ bank_rows.mT / teacher_temp
    student_lse, teacher_lse, logit_gap = statistics
    ps = log_probability(student_logits, student_lse).exp()
    pt = log_probability(teacher_logits, teacher_lse).exp()
    # log p_t - log p_s - kl, in which the log-sum-exps cancel.
    beyond = (teacher_logits.double() - student_logits.double() - logit_gap.unsqueeze(-1)).to(dtype)
    upstream = grad_kl.unsqueeze(-1)
    student_weight = upstream * (ps - pt) / student_temp
    teacher_weight = upstream * pt * beyond / teacher_temp
    grad = student_weight.mT @ student_rows + teacher_weight.mT @ teacher_rows
    return raw_gradient(grad, bank, normalize)
