"""The stages of ACTION and the baselines. Each owns its losses; the trainer knows only the interface in ``base``."""

from __future__ import annotations

from action.config import TrainConfig
from action.stages.anatomical_contrast import AnatomicalContrast
from action.stages.base import Stage
from action.stages.global_distillation import GlobalDistillation
from action.stages.local_distillation import LocalDistillation
from action.stages.mean_teacher import MeanTeacher
from action.stages.supervised import Supervised

__all__ = ["Stage", "make_stages"]


def make_stages(config: TrainConfig) -> list[Stage]:
    """The stages of the configured method, in order; stages of zero iterations are left out (an ablation)."""
    if config.method == "supervised":
        stages: list[Stage] = [Supervised(config)]
    elif config.method == "mean-teacher":
        stages = [MeanTeacher(config)]
    else:
        stages = [GlobalDistillation(config), LocalDistillation(config), AnatomicalContrast(config)]
    return [stage for stage in stages if stage.iterations > 0]
