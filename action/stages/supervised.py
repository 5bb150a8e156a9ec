"""Baseline: the labelled slices alone, in the same trainer with the same augmentation."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from action.config import TrainConfig
from action.model.learner import Learner
from action.stages.base import TrainingData, two_views
from action.stages.losses import segmentation_loss


class Supervised:
    """L = L_sup."""

    name = "supervised"
    loss_names = ("loss", "supervised")
    nesterov = True
    segments = True

    def __init__(self, config: TrainConfig) -> None:
        self._labeled = config.baseline.labeled
        self.iterations = config.baseline.iterations or config.total_iterations

    def batch(self, data: TrainingData, step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        _, strong = two_views(data.labeled, step * self._labeled, self._labeled, data.augmentation, rng)
        return strong

    def losses(
        self, learner: Learner, batch: dict[str, Tensor], step: int, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        loss = segmentation_loss(learner.student(batch["image"]).logits, batch["label"])
        return {"loss": loss, "supervised": loss}

    def finish_step(self, learner: Learner) -> None:
        pass
