"""Stage 2: encoder and decoder learn from every window position's own bank; the labels join."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from action.config import TrainConfig
from action.model.learner import Learner
from action.stages.base import TrainingData, distillation_batch
from action.stages.global_distillation import global_loss
from action.stages.losses import segmentation_loss
from action_kernels import contrastive_distillation


class LocalDistillation:
    """L = L_sup + w_g L_global + w_l L_local, L_local = mean_{b,n} KL(p_t(b,n) || p_s(b,n)) over window positions n."""

    name = "local_distillation"
    loss_names = ("loss", "supervised", "global", "local")
    segments = True

    def __init__(self, config: TrainConfig) -> None:
        self._config = config.local_distillation
        self._global_config = config.global_distillation
        self.iterations, self.nesterov = self._config.iterations, self._config.nesterov

    def batch(self, data: TrainingData, step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        return distillation_batch(data, self._config.labeled, self._config.unlabeled, step, rng)

    def losses(
        self, learner: Learner, batch: dict[str, Tensor], step: int, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            teacher_maps = learner.teacher.network.encode(batch["weak"])
            self._windows = learner.teacher.local_head(learner.teacher.network.decode(teacher_maps).logits)
        student_maps = learner.student.network.encode(batch["strong"])
        logits = learner.student.network.decode(student_maps).logits
        local = contrastive_distillation(
            learner.student.local_head(logits),
            self._windows,
            learner.window_bank.rows,
            student_temp=self._config.student_temp,
            teacher_temp=self._config.teacher_temp,
        )
        slices, self._embedding = global_loss(learner, student_maps[-1], teacher_maps[-1], self._global_config)
        supervised = segmentation_loss(logits[: len(batch["label"])], batch["label"])
        loss = supervised + self._global_config.weight * slices + self._config.weight * local
        return {"loss": loss, "supervised": supervised, "global": slices, "local": local}

    def finish_step(self, learner: Learner) -> None:
        learner.slice_bank.push(self._embedding)
        learner.window_bank.push(self._windows)
