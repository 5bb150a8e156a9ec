"""Fused contrastive-learning operators for PyTorch: soft-target distillation, hard negatives, InfoNCE over a bank.

``action_kernels.backends`` is the function that lists the backends; their package is reached by
``from action_kernels.backends import ...``.
"""

from .backends import backends, use_backend
from .functional import (
    ActionContrastResult,
    action_contrast,
    anatomical_contrast,
    contrastive_distillation,
    hard_negatives,
    relation_negatives,
)
from .memory_bank import MemoryBank
from .modules import ActionContrast, AnatomicalContrast, ContrastiveDistillation

__all__ = [
    "ActionContrast",
    "ActionContrastResult",
    "AnatomicalContrast",
    "ContrastiveDistillation",
    "MemoryBank",
    "action_contrast",
    "anatomical_contrast",
    "backends",
    "contrastive_distillation",
    "hard_negatives",
    "relation_negatives",
    "use_backend",
]
