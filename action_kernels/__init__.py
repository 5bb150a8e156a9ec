"""Fused contrastive-learning operators for PyTorch: soft-target distillation, hard negatives, InfoNCE over a bank."""

from .backends import list_backends, use_backend
from .memory_bank import MemoryBank
from .modules import ActionContrast, AnatomicalContrast, ContrastiveDistillation
from .operators import (
    ActionContrastResult,
    action_contrast,
    anatomical_contrast,
    contrastive_distillation,
    hard_negatives,
    info_nce,
    log_sum_exp,
    relation_negatives,
)

__version__ = "0.1.0"

__all__ = [
    "ActionContrast",
    "ActionContrastResult",
    "AnatomicalContrast",
    "ContrastiveDistillation",
    "MemoryBank",
    "action_contrast",
    "anatomical_contrast",
    "contrastive_distillation",
    "hard_negatives",
    "info_nce",
    "list_backends",
    "log_sum_exp",
    "relation_negatives",
    "use_backend",
]
