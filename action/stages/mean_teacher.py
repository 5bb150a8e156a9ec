"""Baseline: Mean Teacher (Tarvainen and Valpola, NeurIPS 2017), consistency with the averaged teacher."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from action.model.network import Network
from action.model.teacher import StudentTeacher
from action.stages.base import Stage, StageParts, StepResult, TrainingData
from action.stages.losses import ramp_up, segmentation_loss


class MeanTeacher(Stage):
    """L = L_sup + w(t) * mean squared difference of the class probabilities on unlabelled slices.

    The student's unlabelled view differs in intensity only, so that pixels correspond;
    w(t) = consistency * exp(-5 (1 - t / ramp)^2).
    """

    name = "mean_teacher"
    loss_names = ("loss", "supervised", "consistency")
    asks_teacher = True

    def __init__(self, parts: StageParts) -> None:
        super().__init__(parts)
        self._config = parts.config.baseline
        self.iterations = self._config.iterations

    def batch(self, data: TrainingData, step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        _, labeled = self.two_views(data.labeled, step * self._config.labeled, self._config.labeled, rng)
        weak = self.unlabeled_view(data, step, self._config.unlabeled, rng)
        return {**labeled, "weak": weak, "student": self.augmentation.intensity({"image": weak}, rng)["image"]}

    def losses(
        self, network: StudentTeacher[Network], batch: Mapping[str, Tensor], step: int, rng: np.random.Generator
    ) -> StepResult:
        with torch.no_grad():
            target = self.segmented(network.teacher, batch["weak"]).logits.softmax(dim=1)
        logits = self.segmented(network.student, torch.cat([batch["image"], batch["student"]])).logits
        labeled = len(batch["image"])
        supervised = segmentation_loss(logits[:labeled], batch["label"])
        consistency = (logits[labeled:].softmax(dim=1) - target).square().mean()
        weight = self._config.consistency * ramp_up(step, self._config.ramp_up * self.iterations)
        loss = supervised + weight * consistency
        return StepResult({"loss": loss, "supervised": supervised, "consistency": consistency})


STAGE = MeanTeacher
