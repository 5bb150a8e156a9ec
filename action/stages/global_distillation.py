"""Stage 1: the encoder learns slice embeddings from the teacher's soft similarity labels; no labels are used."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from action.config import DistillationConfig, TrainConfig
from action.model.learner import Learner
from action.stages.base import TrainingData, distillation_batch
from action_kernels import contrastive_distillation


class GlobalDistillation:
    """L_global = mean_b KL(p_t(b) || p_s(b)) over a bank of past teacher embeddings."""

    name = "global_distillation"
    loss_names = ("loss", "global")
    segments = False

    def __init__(self, config: TrainConfig) -> None:
        self._config = config.global_distillation
        self.iterations, self.nesterov = self._config.iterations, self._config.nesterov

    def batch(self, data: TrainingData, step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        return distillation_batch(data, self._config.labeled, self._config.unlabeled, step, rng)

    def losses(
        self, learner: Learner, batch: dict[str, Tensor], step: int, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            teacher_map = learner.teacher.network.encode(batch["weak"])[-1]
        student_map = learner.student.network.encode(batch["strong"])[-1]
        loss, self._embedding = global_loss(learner, student_map, teacher_map, self._config)
        return {"loss": loss, "global": loss}

    def finish_step(self, learner: Learner) -> None:
        learner.slice_bank.push(self._embedding)


def global_loss(
    learner: Learner, student_map: Tensor, teacher_map: Tensor, config: DistillationConfig
) -> tuple[Tensor, Tensor]:
    """The loss and the teacher's embeddings [B, dim], which enter the bank after the step."""
    with torch.no_grad():
        embedding = learner.teacher.global_head(teacher_map)
    prediction = learner.student.predictor(learner.student.global_head(student_map))
    loss = contrastive_distillation(
        prediction,
        embedding,
        learner.slice_bank.rows,
        student_temp=config.student_temp,
        teacher_temp=config.teacher_temp,
    )
    return loss, embedding
