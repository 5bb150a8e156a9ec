"""Baseline: Mean Teacher (Tarvainen and Valpola, NeurIPS 2017), consistency with the averaged teacher."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from action.config import TrainConfig
from action.model.learner import Learner
from action.stages.base import TrainingData, two_views
from action.stages.losses import ramp_up, segmentation_loss


class MeanTeacher:
    """L = L_sup + w(t) * mean squared difference of the class probabilities on unlabelled slices.

    The student's unlabelled view differs in intensity only, so that pixels correspond;
    w(t) = consistency * exp(-5 (1 - t / ramp)^2).
    """

    name = "mean_teacher"
    loss_names = ("loss", "supervised", "consistency")
    nesterov = True
    segments = True

    def __init__(self, config: TrainConfig) -> None:
        self._config = config.baseline
        self.iterations = self._config.iterations or config.total_iterations

    def batch(self, data: TrainingData, step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        count = self._config.unlabeled
        _, labeled = two_views(data.labeled, step * self._config.labeled, self._config.labeled, data.augmentation, rng)
        pool = data.unlabeled_or_labeled
        weak = data.augmentation.weak({"image": pool.batch(step * count, count)["image"]}, rng)
        student = data.augmentation.intensity(weak, rng)
        return {**labeled, "weak": weak["image"], "student": student["image"]}

    def losses(
        self, learner: Learner, batch: dict[str, Tensor], step: int, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            target = learner.teacher(batch["weak"]).logits.softmax(dim=1)
        logits = learner.student(torch.cat([batch["image"], batch["student"]])).logits
        labeled = len(batch["image"])
        supervised = segmentation_loss(logits[:labeled], batch["label"])
        consistency = (logits[labeled:].softmax(dim=1) - target).square().mean()
        weight = self._config.consistency * ramp_up(step, self._config.ramp_up * self.iterations)
        return {"loss": supervised + weight * consistency, "supervised": supervised, "consistency": consistency}

    def finish_step(self, learner: Learner) -> None:
        pass
