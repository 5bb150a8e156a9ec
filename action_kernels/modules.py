"""The losses as modules: settings once, tensors at every call. A schedule may change the attributes between calls.

A temperature that is an ``nn.Parameter``, given or assigned, is a parameter of the module and is learnt.
"""

from __future__ import annotations

from torch import Tensor, nn

from . import operators
from .operators import ActionContrastResult
from .operators.temperature import Temperature


class ContrastiveDistillation(nn.Module):
    """Module twin of :func:`~action_kernels.contrastive_distillation`."""

    def __init__(
        self,
        student_temp: Temperature = 0.1,
        teacher_temp: Temperature = 0.01,
        reduction: str = "mean",
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.student_temp, self.teacher_temp = student_temp, teacher_temp
        self.reduction, self.normalize = reduction, normalize

    def forward(self, student: Tensor, teacher: Tensor, bank: Tensor) -> Tensor:
        """student, teacher [(G,) N, D], bank [(G,) M, D] -> loss."""
        return operators.contrastive_distillation(
            student,
            teacher,
            bank,
            student_temp=self.student_temp,
            teacher_temp=self.teacher_temp,
            reduction=self.reduction,
            normalize=self.normalize,
        )

    def extra_repr(self) -> str:
        return (
            f"student_temp={_shown(self.student_temp)}, teacher_temp={_shown(self.teacher_temp)}, "
            f"reduction={self.reduction!r}, normalize={self.normalize}"
        )


class ActionContrast(nn.Module):
    """Module twin of :func:`~action_kernels.action_contrast`."""

    def __init__(
        self,
        k: int,
        student_temp: Temperature = 0.1,
        teacher_temp: Temperature = 0.01,
        reduction: str = "mean",
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.k, self.student_temp, self.teacher_temp = k, student_temp, teacher_temp
        self.reduction, self.normalize = reduction, normalize

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        bank: Tensor,
        query_labels: Tensor | None = None,
        bank_labels: Tensor | None = None,
    ) -> ActionContrastResult:
        """student, teacher [(G,) N, D], bank [(G,) M, D], labels [(G,) N] and [(G,) M] -> loss and hard negatives."""
        return operators.action_contrast(
            student,
            teacher,
            bank,
            self.k,
            student_temp=self.student_temp,
            teacher_temp=self.teacher_temp,
            query_labels=query_labels,
            bank_labels=bank_labels,
            reduction=self.reduction,
            normalize=self.normalize,
        )

    def extra_repr(self) -> str:
        return (
            f"k={self.k}, student_temp={_shown(self.student_temp)}, teacher_temp={_shown(self.teacher_temp)}, "
            f"reduction={self.reduction!r}, normalize={self.normalize}"
        )


class AnatomicalContrast(nn.Module):
    """Module twin of :func:`~action_kernels.anatomical_contrast`."""

    def __init__(self, temp: Temperature = 0.5, reduction: str = "mean", normalize: bool = True) -> None:
        super().__init__()
        self.temp, self.reduction, self.normalize = temp, reduction, normalize

    def forward(self, query: Tensor, positive: Tensor, bank: Tensor, index: Tensor) -> Tensor:
        """query, positive [(G,) N, D], bank [(G,) M, D], index [(G,) N, k] -> loss."""
        return operators.anatomical_contrast(
            query, positive, bank, index, temp=self.temp, reduction=self.reduction, normalize=self.normalize
        )

    def extra_repr(self) -> str:
        return f"temp={_shown(self.temp)}, reduction={self.reduction!r}, normalize={self.normalize}"


def _shown(temp: Temperature) -> str:
    """A number as it is; of a tensor not its value, which may lie on a GPU."""
    if not isinstance(temp, Tensor):
        return str(temp)
    return "learnt" if temp.requires_grad else "tensor"
