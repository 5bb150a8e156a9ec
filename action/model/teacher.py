"""The teacher: an exponential moving average of the student, weights and buffers."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import chain
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class StudentTeacher(nn.Module, Generic[ModuleT]):
    """A module that is trained, and its moving average.

    Attributes:
        student: the module.
        teacher: a copy without gradients, always in evaluation mode: its batch statistics are averages, too.
    """

    def __init__(self, student: ModuleT) -> None:
        super().__init__()
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> StudentTeacher[ModuleT]:
        """Set the mode of the student alone."""
        super().train(mode)
        self.teacher.eval()
        return self


@torch.no_grad()
def update_teachers(pairs: Iterable[StudentTeacher[nn.Module]], momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for every parameter and floating buffer.

    Integer buffers (batch norm's counter) are copied.
    """
    averages: list[Tensor] = []
    values: list[Tensor] = []
    for pair in pairs:
        for average, value in zip(_state(pair.teacher), _state(pair.student), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
    get_ema_multi_avg_fn(momentum)(averages, values, None)


def _state(module: nn.Module) -> Iterable[Tensor]:
    """Weights and buffers, in the order of the modules."""
    return chain(module.parameters(), module.buffers())
