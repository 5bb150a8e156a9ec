"""Soft-target distillation over a bank: ``action_contrast`` that selects nothing.

Source: You et al., "Bootstrapping Semi-supervised Medical Image Segmentation with Anatomical-Aware Contrastive
Distillation", IPMI 2023, arXiv 2206.02307.
"""

from __future__ import annotations

from torch import Tensor

from .action_contrast import contrast
from .temperature import Temperature


def contrastive_distillation(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    *,
    student_temp: Temperature = 0.1,
    teacher_temp: Temperature = 0.01,
    reduction: str = "mean",
    normalize: bool = True,
) -> Tensor:
    """Divergence between the teacher's and the student's similarity distribution over a bank.

    ``KL_i = sum_j p_t(j) (log p_t(j) - log p_s(j))`` with ``p_t = softmax_j(<teacher_i, bank_j> / teacher_temp)`` and
    ``p_s = softmax_j(<student_i, bank_j> / student_temp)``: the paper's global and local contrastive distillation.

    Args:
        student: [(G,) N, D], differentiable.
        teacher: [(G,) N, D], must not require grad.
        bank: [(G,) M, D], differentiable through both distributions (the rows of a ``MemoryBank`` are detached).
        student_temp: temperature of the student's softmax, > 0; differentiable where it is a tensor of one element.
        teacher_temp: temperature of the teacher's softmax, > 0; as a tensor it must not require grad.
        reduction: ``"none"`` gives [(G,) N]; ``"mean"`` and ``"sum"`` run over all rows of all groups.
        normalize: scale every row to unit length first, so that similarities are cosines.

    Returns:
        The loss; zero, with a graph, where there are no queries or no bank rows.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, a temperature is not positive, the teacher or its temperature
            requires grad.
    """
    kl, _, _ = contrast(student, teacher, bank, 0, student_temp, teacher_temp, None, None, reduction, normalize)
    return kl
