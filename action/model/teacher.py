"""The teacher: an exponential moving average of the student, weights and buffers, network and heads."""

from __future__ import annotations

import copy

import torch
from torch import nn


def make_teacher(student: nn.Module) -> nn.Module:
    """A copy of the student in evaluation mode, without gradients."""
    teacher = copy.deepcopy(student).eval()
    return teacher.requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for every parameter and floating buffer.

    Integer buffers (batch norm's counter) are copied.
    """
    source = student.state_dict()
    averages, values = [], []
    for name, average in teacher.state_dict().items():
        value = source[name]
        if average.is_floating_point():
            averages.append(average)
            values.append(value)
        else:
            average.copy_(value)
    torch._foreach_lerp_(averages, values, 1.0 - momentum)
