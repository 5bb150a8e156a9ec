"""The project's headline: soft-target distillation and hard negatives from one pass over the similarities to a bank.

Source: You et al., "Bootstrapping Semi-supervised Medical Image Segmentation with Anatomical-Aware Contrastive
Distillation", IPMI 2023, arXiv 2206.02307.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import pinned
from ..dtypes import working_dtype
from ..unit_rows import unit
from . import arguments, temperature
from .registration import Gradients, call, keep, register, register_gradient
from .shapes import banked, grouped, grouped_labels, like, nothing, reduce, ungrouped, zero
from .temperature import Temperature


class ActionContrastResult(NamedTuple):
    """What :func:`action_contrast` returns."""

    distillation: Tensor  # KL divergence, reduced
    similarity: Tensor  # [(G,) N, k] student similarities of the hard negatives, descending; -inf where none is left
    index: Tensor  # type: ignore[assignment]  # [(G,) N, k] int64 bank rows of the hard negatives; -1 where none is left


def action_contrast(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    k: int,
    *,
    student_temp: Temperature = 0.1,
    teacher_temp: Temperature = 0.01,
    query_labels: Tensor | None = None,
    bank_labels: Tensor | None = None,
    reduction: str = "mean",
    normalize: bool = True,
) -> ActionContrastResult:
    """:func:`contrastive_distillation` and :func:`hard_negatives` of the student, from one pass over the similarities.

    Arguments, results and errors are those of the two functions; ``reduction`` applies to the divergence.
    """
    arguments.check_k(k)
    return ActionContrastResult(
        *contrast(
            student,
            teacher,
            bank,
            k,
            student_temp,
            teacher_temp,
            query_labels,
            bank_labels,
            reduction,
            normalize,
        )
    )


def contrast(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    k: int,
    student_temp: Temperature,
    teacher_temp: Temperature,
    query_labels: Tensor | None,
    bank_labels: Tensor | None,
    reduction: str,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The divergence, and the ``k`` hard negatives of the student if there is a ``k``: similarities and bank rows."""
    arguments.check_reduction(reduction)
    arguments.check_normalize(normalize)
    arguments.check_rows(student=student, teacher=teacher, bank=bank)
    student_temp = temperature.checked("student_temp", student_temp, student)
    teacher_temp = temperature.checked("teacher_temp", teacher_temp, student, learnable=False)
    if teacher.shape != student.shape:
        raise ValueError(
            f"teacher must have the shape of student, got {tuple(teacher.shape)} and {tuple(student.shape)}"
        )
    if teacher.requires_grad:
        raise ValueError(f"teacher must not require grad (shape {tuple(teacher.shape)}): pass teacher.detach()")
    arguments.check_features("student", student, "bank", bank)
    query_labels, bank_labels = arguments.check_labels("student", student, query_labels, bank, bank_labels)
    if not (student.shape[-2] and banked(bank)):
        empty = zero(student, bank, temp=student_temp)
        similarity = empty.unsqueeze(-1).expand(*student.shape[:-1], k) - torch.inf
        return reduce(empty, reduction, student.dim()), similarity, nothing(student, k)
    divisor: Temperature = 1.0
    if temperature.varies(student_temp) or temperature.varies(teacher_temp):
        dtype = working_dtype(student, teacher, bank)
        student, teacher, bank = (unit(x, normalize, dtype) for x in (student, teacher, bank))
        student, student_temp, divisor = temperature.absorbed(student, student_temp, dtype)
        teacher, teacher_temp, _ = temperature.absorbed(teacher, teacher_temp, dtype)
        normalize = False
    kl, _, _, similarity, index = call(
        "action_contrast",
        *grouped(student, teacher, bank),
        k,
        student_temp,
        teacher_temp,
        grouped_labels(query_labels),
        grouped_labels(bank_labels),
        normalize,
        torch.is_grad_enabled() and student.requires_grad,
        torch.is_grad_enabled() and bank.requires_grad,
    )
    if k and temperature.varies(divisor):  # back to similarities of the rows; -inf times a zero gradient is NaN
        found = index >= 0
        similarity = torch.where(found, torch.where(found, similarity, 0.0) * divisor, -torch.inf)
    dim = student.dim()
    return reduce(kl, reduction, dim), ungrouped(similarity, dim), ungrouped(index, dim)


# ---------------------------------------------------------------------------------------------- as PyTorch sees it


def _fake(
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
) -> tuple[Tensor, ...]:
    dtype = working_dtype(student, teacher, bank)
    kl = student.new_empty(student.shape[:-1], dtype=dtype)
    statistics = kl.new_empty((3, *kl.shape) if with_statistics else 0, dtype=torch.float64)
    similarity = student.new_empty((*student.shape[:-1], k), dtype=dtype)
    index = student.new_empty((*student.shape[:-1], k), dtype=torch.int64)
    return kl, statistics, like(student, dtype, with_student_grad), similarity, index


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    student, teacher, bank, k, student_temp, teacher_temp, _, _, normalize, with_student_grad, with_statistics = inputs
    _, statistics, student_grad, _, index = output
    ctx.mark_non_differentiable(statistics, student_grad, index)
    to_student, to_bank = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    ctx.settings = k, student_temp, teacher_temp, normalize
    ctx.dtypes = student.dtype, bank.dtype
    # student_grad is all that the divergence needs for the student; the bank is kept only for other gradients.
    # A graph traced with a student that required no gradient lacks it: its backward pass computes it; likewise the
    # statistics, for a gradient in the bank.
    missing = to_student and not with_student_grad
    again = (student, bank) if to_bank or missing or k > 0 else (None, None)
    of_student = student_grad if to_student and with_student_grad else None
    of_both = statistics if to_bank and with_statistics else None
    keep(ctx, *again, index, of_student, teacher if to_bank or missing else None, of_both)


def _backward(
    ctx: Any,
    grad_kl: Tensor | None,
    _statistics: None,
    _student_grad: None,
    grad_similarity: Tensor | None,
    _index: None,
) -> Gradients:
    student, bank, index, student_grad, teacher, statistics = ctx.saved_tensors
    k, student_temp, teacher_temp, normalize = ctx.settings
    to_student, to_bank = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    student_terms, bank_terms = [], []
    if ctx.needs_input_grad[1]:
        raise RuntimeError("teacher has no gradient: differentiate in student or bank, and pass teacher.detach()")
    lacking = to_student and student_grad is None, to_bank and statistics is None
    if grad_kl is not None and any(lacking):
        with pinned(ctx.backend or None):
            again = call(
                "action_contrast",
                *(student, teacher, bank, 0, student_temp, teacher_temp, None, None, normalize, *lacking),
            )
        statistics = again[1] if statistics is None else statistics
        student_grad = again[2] if student_grad is None else student_grad
    if grad_kl is not None and to_student:
        student_terms.append(grad_kl.unsqueeze(-1) * student_grad)
    if grad_kl is not None and to_bank:
        bank_terms.append(
            call(
                "action_contrast_bank_gradient",
                *(grad_kl, student, teacher, bank, statistics),
                *(student_temp, teacher_temp, normalize),
                ctx.backend,
            )
        )
    if grad_similarity is not None and k > 0:
        grads = call(
            "hard_negatives_gradient",
            *(grad_similarity, student, bank, index, normalize, to_student, to_bank, ctx.backend),
        )
        student_terms += grads[:1] if to_student else ()
        bank_terms += grads[1:] if to_bank else ()
    student_dtype, bank_dtype = ctx.dtypes
    return _sum(student_terms, student_dtype), None, _sum(bank_terms, bank_dtype), *(None,) * 8


def _sum(terms: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
    """Gradient terms added in float32, rounded once to the input's dtype."""
    return sum(terms[1:], terms[0]).to(dtype) if terms else None


register(
    "action_contrast",
    "(Tensor student, Tensor teacher, Tensor bank, SymInt k, float student_temp, float teacher_temp,"
    " Tensor? query_labels, Tensor? bank_labels, bool normalize, bool with_student_grad,"
    " bool with_statistics)"
    " -> (Tensor kl, Tensor statistics, Tensor student_grad, Tensor similarity, Tensor index)",
    rows=("student", "teacher", "bank"),
    fake=_fake,
    save=_save,
    backward=_backward,
)


def _student_gradient_fake(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    lses: Tensor,
    student_temp: float,
    teacher_temp: float,
    normalize: bool,
    backend: str,
) -> Tensor:
    return like(student, working_dtype(student, teacher, bank))


register_gradient(
    "action_contrast_student_gradient",
    "(Tensor student, Tensor teacher, Tensor bank, Tensor lses, float student_temp, float teacher_temp,"
    " bool normalize, str backend) -> Tensor",
    operator="action_contrast",
    rows=("student", "teacher", "bank"),
    fake=_student_gradient_fake,
)


def _bank_gradient_fake(
    grad_kl: Tensor,
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    statistics: Tensor,
    student_temp: float,
    teacher_temp: float,
    normalize: bool,
    backend: str,
) -> Tensor:
    return like(bank, working_dtype(student, teacher, bank))


register_gradient(
    "action_contrast_bank_gradient",
    "(Tensor grad_kl, Tensor student, Tensor teacher, Tensor bank, Tensor statistics, float student_temp,"
    " float teacher_temp, bool normalize, str backend) -> Tensor",
    operator="action_contrast",
    rows=("student", "teacher", "bank"),
    fake=_bank_gradient_fake,
)
