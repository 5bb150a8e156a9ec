"""Stage 2: encoder and decoder learn from every window position's own bank; the labels join."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from action.model.heads import LocalHead
from action.model.network import Network
from action.model.teacher import StudentTeacher
from action.stages.base import Push, Stage, StageParts, StepResult, TrainingData
from action.stages.global_distillation import GlobalDistillation
from action.stages.losses import segmentation_loss
from action_kernels import MemoryBank, contrastive_distillation


class LocalDistillation(Stage):
    """L = L_sup + w_g L_global + w_l L_local, L_local = mean_{b,n} KL(p_t(b,n) || p_s(b,n)) over window positions n.

    L_global is that of stage 1, whose head and bank go on being trained and filled.
    """

    name = "local_distillation"
    loss_names = ("loss", "supervised", "global", "local")
    uses_features = True

    def __init__(self, parts: StageParts) -> None:
        super().__init__(parts)
        config, stage_1 = parts.config, parts.earlier[GlobalDistillation.name]
        assert isinstance(stage_1, GlobalDistillation)
        self._config, self._global_weight = config.local_distillation, config.global_distillation.weight
        self.iterations, self.nesterov = self._config.iterations, self._config.nesterov
        self._global_loss = stage_1.global_loss  # with the head and the bank that stage 1 owns
        model = config.model
        head = LocalHead(parts.classes, model.window, model.stride, model.pooled)
        self.head = StudentTeacher(head)
        self.bank = MemoryBank(self._config.bank, head.dim, groups=head.positions(config.input.size), normalize=False)

    def batch(self, data: TrainingData, step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        return self.distillation_batch(data, self._config.labeled, self._config.unlabeled, step, rng)

    def losses(
        self, network: StudentTeacher[Network], batch: Mapping[str, Tensor], step: int, rng: np.random.Generator
    ) -> StepResult:
        with torch.no_grad():
            teacher = network.teacher(self.ranks.own(batch["weak"]))
            windows = self.ranks.joined(self.head.teacher(teacher.logits), dim=1)
        student = network.student(self.ranks.own(batch["strong"]))
        local = contrastive_distillation(
            self.ranks.joined(self.head.student(student.logits), dim=1),
            windows,
            self.bank.rows,
            student_temp=self._config.student_temp,
            teacher_temp=self._config.teacher_temp,
        )
        slices, push = self._global_loss(student.features[0], teacher.features[0])
        supervised = segmentation_loss(self.ranks.joined(student.logits)[: len(batch["label"])], batch["label"])
        loss = supervised + self._global_weight * slices + self._config.weight * local
        losses = {"loss": loss, "supervised": supervised, "global": slices, "local": local}
        return StepResult(losses, [push, Push(self.bank, windows)])


STAGE = LocalDistillation
