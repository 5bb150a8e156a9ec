"""Baseline: pseudo-labels on mixed strong views, for all of the updates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from action.model.network import Network
from action.model.teacher import StudentTeacher
from action.stages.base import StageParts, StepResult
from action.stages.pseudo_labeling import PseudoLabeling


class PseudoLabels(PseudoLabeling):
    """L = L_sup + unsupervised_weight * L_unsup, see ``pseudo_label_loss``, on slices mixed by CutMix or ClassMix.

    The settings are those of stage 3, the number of updates that of the baselines.
    """

    name = "pseudo_labels"
    loss_names = ("loss", "supervised", "unsupervised", "confident")

    def __init__(self, parts: StageParts) -> None:
        super().__init__(parts)
        self.iterations = parts.config.baseline.iterations

    def losses(
        self, network: StudentTeacher[Network], batch: Mapping[str, Tensor], step: int, rng: np.random.Generator
    ) -> StepResult:
        return StepResult(self.pseudo_label_losses(self.seen(network, batch, rng), batch["label"], step))


STAGE = PseudoLabels
