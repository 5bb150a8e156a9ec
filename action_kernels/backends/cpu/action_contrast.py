"""Both softmaxes over the bank, their divergence with its gradients, and the hard negatives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..interface import ContrastResult
from ..native import contiguous_labels
from . import scratch_limit
from .launchers import bind, empty


class ActionContrastParams(NamedTuple):
    """As ``csrc/params/action_contrast.h`` has them."""

    student: Tensor
    teacher: Tensor
    bank: Tensor
    query_labels: Tensor | None
    bank_labels: Tensor | None
    student_temp: float
    teacher_temp: float
    normalize: bool
    kl: Tensor
    statistics: Tensor | None
    student_grad: Tensor | None
    similarity: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    threads: int
    scratch_bytes: int


class ActionContrastStudentGradientParams(NamedTuple):
    """As ``csrc/params/action_contrast.h`` has them."""

    student: Tensor
    teacher: Tensor
    bank: Tensor
    lses: Tensor
    student_temp: float
    teacher_temp: float
    normalize: bool
    student_grad: Tensor
    threads: int
    scratch_bytes: int


class ActionContrastBankGradientParams(NamedTuple):
    """As ``csrc/params/action_contrast.h`` has them."""

    grad_kl: Tensor
    student: Tensor
    teacher: Tensor
    bank: Tensor
    statistics: Tensor
    student_temp: float
    teacher_temp: float
    normalize: bool
    bank_grad: Tensor
    threads: int
    scratch_bytes: int


_forward = bind("action_contrast", ActionContrastParams)
_student_gradient = bind("action_contrast_student_gradient", ActionContrastStudentGradientParams)
_bank_gradient = bind("action_contrast_bank_gradient", ActionContrastBankGradientParams)


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
    groups, queries, features = student.shape
    query_labels, bank_labels = contiguous_labels(query_labels, bank_labels)
    result = ContrastResult(
        kl=empty((groups, queries)),
        statistics=empty((3, groups, queries) if with_statistics else (0,), torch.float64),
        student_grad=empty((groups, queries, features) if with_student_grad else (0,)),
        similarity=empty((groups, queries, k)),
        index=empty((groups, queries, k), torch.int64),
    )
    _forward(
        ActionContrastParams(
            student=student,
            teacher=teacher,
            bank=bank,
            query_labels=query_labels,
            bank_labels=bank_labels,
            student_temp=student_temp,
            teacher_temp=teacher_temp,
            normalize=normalize,
            kl=result.kl,
            statistics=result.statistics if with_statistics else None,
            student_grad=result.student_grad if with_student_grad else None,
            similarity=result.similarity,
            index=result.index,
            threads=torch.get_num_threads(),
            scratch_bytes=scratch_limit(),
        )
    )
    return result


def action_contrast_student_gradient(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    lses: Tensor,
    student_temp: float,
    teacher_temp: float,
    normalize: bool,
) -> Tensor:
    student_grad = empty(student.shape)
    _student_gradient(
        ActionContrastStudentGradientParams(
            student=student,
            teacher=teacher,
            bank=bank,
            lses=lses.contiguous(),
            student_temp=student_temp,
            teacher_temp=teacher_temp,
            normalize=normalize,
            student_grad=student_grad,
            threads=torch.get_num_threads(),
            scratch_bytes=scratch_limit(),
        )
    )
    return student_grad


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
    bank_grad = empty(bank.shape)
    _bank_gradient(
        ActionContrastBankGradientParams(
            grad_kl=grad_kl.contiguous(),
            student=student,
            teacher=teacher,
            bank=bank,
            statistics=statistics.contiguous(),
            student_temp=student_temp,
            teacher_temp=teacher_temp,
            normalize=normalize,
            bank_grad=bank_grad,
            threads=torch.get_num_threads(),
            scratch_bytes=scratch_limit(),
        )
    )
    return bank_grad
