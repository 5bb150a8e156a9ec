"""Soft-target distillation over a divided bank: ``action_contrast`` that selects nothing."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from .action_contrast import contrast
from .bank import ShardedMemoryBank
from .trips import CHUNK


def contrastive_distillation(
    student: Tensor,
    teacher: Tensor,
    bank: ShardedMemoryBank | Tensor,
    *,
    student_temp: float = 0.1,
    teacher_temp: float = 0.01,
    reduction: str = "mean",
    normalize: bool = True,
    chunk: int = CHUNK,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """:func:`action_kernels.contrastive_distillation` of this process's queries over a bank that all processes share.

    A collective call. Arguments, gradients and errors are those of
    :func:`~action_kernels.distributed.action_contrast`, whose divergence this is.
    """
    settings = student_temp, teacher_temp, None, None, reduction, normalize, chunk, group
    kl, _, _ = contrast(student, teacher, bank, None, *settings)
    return kl
