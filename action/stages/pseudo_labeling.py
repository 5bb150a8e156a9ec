"""The teacher's pseudo-labels on mixed strong views: what a baseline and stage 3 of ACTION have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from action.data.mixing import mix
from action.data.slices import Slices
from action.model.class_shares import ClassShares
from action.model.network import Network, NetworkOutput
from action.model.teacher import StudentTeacher
from action.stages.base import Stage, StageParts, TrainingData
from action.stages.losses import pseudo_label_loss, ramp_up, segmentation_loss


class Seen(NamedTuple):
    """A batch with its pseudo-labels, and what the networks make of it.

    Attributes:
        weak: the weak views, of the labelled slices first; labels are certain.
        teacher: output for them.
        strong: the strong views of the unlabelled slices, mixed.
        student: output for the strong views, of the labelled slices first.
    """

    weak: Slices
    teacher: NetworkOutput
    strong: Slices
    student: NetworkOutput


class PseudoLabeling(Stage):
    """A stage whose batches have labelled slices and the teacher's pseudo-labels for the others.

    The settings are those of stage 3.
    """

    asks_teacher = True

    def __init__(self, parts: StageParts) -> None:
        super().__init__(parts)
        self._config, self._classes = parts.config.anatomical_contrast, parts.classes
        self.class_shares = ClassShares(parts.classes, parts.config.optimizer.teacher_momentum)

    def batch(self, data: TrainingData, step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        config = self._config
        weak, strong = self.two_views(data.labeled, step * config.labeled, config.labeled, rng)
        unlabeled = self.unlabeled_view(data, step, config.unlabeled, rng)
        return {
            "weak": torch.cat([weak["image"], unlabeled]),
            "weak_label": weak["label"],
            "strong": strong["image"],
            "label": strong["label"],
        }

    def seen(self, network: StudentTeacher[Network], batch: Mapping[str, Tensor], rng: np.random.Generator) -> Seen:
        """The batch with the teacher's pseudo-labels, and both networks' outputs for their views."""
        labeled = len(batch["label"])
        with torch.no_grad():
            teacher = self.segmented(network.teacher, batch["weak"])
        label, confidence = self.pseudo_labels(teacher, batch["weak_label"])
        weak = {"image": batch["weak"], "label": label.float(), "confidence": confidence}
        unlabeled = {key: value[labeled:] for key, value in weak.items()}
        strong = self.strong_view(unlabeled, self.partners(weak, labeled, rng), rng)
        student = self.segmented(network.student, torch.cat([batch["strong"], strong["image"]]))
        return Seen(weak, teacher, strong, student)

    def pseudo_label_losses(self, seen: Seen, label: Tensor, step: int) -> dict[str, Tensor]:
        """L and its parts.

        Args:
            seen: of the batch.
            label: of the strong views of the labelled slices [L, 1, H, W].
            step: decides how far the weight of the pseudo-labels has grown.
        """
        config, labeled = self._config, len(label)
        supervised = segmentation_loss(seen.student.logits[:labeled], label)
        unsupervised, confident = pseudo_label_loss(
            seen.student.logits[labeled:],
            seen.strong["label"],
            seen.strong["confidence"],
            config.strong_threshold,
            config.pseudo_label_threshold,
            config.pseudo_label_dice,
        )
        weight = config.unsupervised_weight * ramp_up(step, config.ramp_up * self.iterations)
        loss = supervised + weight * unsupervised
        return {"loss": loss, "supervised": supervised, "unsupervised": unsupervised, "confident": confident}

    @torch.no_grad()
    def pseudo_labels(self, teacher: NetworkOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Class and confidence of each pixel, both [B, 1, H, W].

        Args:
            teacher: output for the weak views, of the labelled slices first.
            labels: of those, [L, 1, H, W]; their pixels are certain.
        """
        labeled = len(labels)
        probability = teacher.logits.softmax(dim=1)
        if self._config.pseudo_label_alignment:
            probability[labeled:] = self.class_shares.align(probability[labeled:], labels)
        confidence, label = probability.max(dim=1, keepdim=True)
        label[:labeled] = labels.long()
        confidence[:labeled] = 1.0
        return label, confidence

    def partners(self, slices: Slices, labeled: int, rng: np.random.Generator) -> Slices:
        """For each unlabelled slice (those from ``labeled`` on) the one that is mixed into it."""
        if self._config.mix_with == "unlabeled":
            return {key: value[labeled:].roll(1, dims=0) for key, value in slices.items()}
        chosen = torch.from_numpy(rng.integers(labeled, size=len(slices["image"]) - labeled))
        return {key: value[chosen.to(value.device)] for key, value in slices.items()}

    def strong_view(self, pseudo: Slices, partner: Slices, rng: np.random.Generator) -> Slices:
        """Mixed and augmented slices with their labels and confidences, all moved together, where they lie."""
        return self.augmentation.strong(mix(pseudo, partner, self._config.mix, rng), rng)
