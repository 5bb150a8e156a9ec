"""Stage 1: the encoder learns slice embeddings from the teacher's soft similarity labels; no labels are used."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from action.model.heads import GlobalHead, mlp
from action.model.network import Network
from action.model.teacher import StudentTeacher
from action.stages.base import Push, Stage, StageParts, StepResult, TrainingData
from action_kernels import MemoryBank, contrastive_distillation


class GlobalDistillation(Stage):
    """L_global = mean_b KL(p_t(b) || p_s(b)) over a bank of past teacher embeddings of slices."""

    name = "global_distillation"
    loss_names = ("loss", "global")
    segments = False
    uses_features = True

    def __init__(self, parts: StageParts) -> None:
        super().__init__(parts)
        self._config = parts.config.global_distillation
        self.iterations, self.nesterov = self._config.iterations, self._config.nesterov
        model = parts.config.model
        self.head = StudentTeacher(GlobalHead(parts.widths[0], model.embedding))
        self.predictor = mlp(model.embedding, model.embedding, model.embedding)  # the student's alone
        self.bank = MemoryBank(self._config.bank, model.embedding, normalize=False)

    def batch(self, data: TrainingData, step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        return self.distillation_batch(data, self._config.labeled, self._config.unlabeled, step, rng)

    def losses(
        self, network: StudentTeacher[Network], batch: Mapping[str, Tensor], step: int, rng: np.random.Generator
    ) -> StepResult:
        with torch.no_grad():
            teacher_map = network.teacher.coarsest(self.ranks.own(batch["weak"]))
        loss, push = self.global_loss(network.student.coarsest(self.ranks.own(batch["strong"])), teacher_map)
        return StepResult({"loss": loss, "global": loss}, [push])

    def global_loss(self, student_map: Tensor, teacher_map: Tensor) -> tuple[Tensor, Push]:
        """L_global of the batch, and the teacher's embeddings [B, dim] for the bank.

        Args:
            student_map: the coarsest encoder maps of this process's share, [b, C, h, w].
            teacher_map: likewise.
        """
        with torch.no_grad():
            embedding = self.ranks.joined(self.head.teacher(teacher_map))
        loss = contrastive_distillation(
            self.ranks.joined(self.predictor(self.head.student(student_map))),
            embedding,
            self.bank.rows,
            student_temp=self._config.student_temp,
            teacher_temp=self._config.teacher_temp,
        )
        return loss, Push(self.bank, embedding)


STAGE = GlobalDistillation
