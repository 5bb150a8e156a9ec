"""Baseline: the labelled slices alone, in the same trainer with the same augmentation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from action.model.network import Network
from action.model.teacher import StudentTeacher
from action.stages.base import Stage, StageParts, StepResult, TrainingData
from action.stages.losses import segmentation_loss


class Supervised(Stage):
    """L = L_sup."""

    name = "supervised"
    loss_names = ("loss", "supervised")
    uses_unlabeled = False

    def __init__(self, parts: StageParts) -> None:
        super().__init__(parts)
        self._labeled = parts.config.baseline.labeled
        self.iterations = parts.config.baseline.iterations

    def batch(self, data: TrainingData, step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        _, strong = self.two_views(data.labeled, step * self._labeled, self._labeled, rng)
        return strong

    def losses(
        self, network: StudentTeacher[Network], batch: Mapping[str, Tensor], step: int, rng: np.random.Generator
    ) -> StepResult:
        loss = segmentation_loss(self.segmented(network.student, batch["image"]).logits, batch["label"])
        return StepResult({"loss": loss, "supervised": loss})


STAGE = Supervised
