"""Baseline: bidirectional copy-paste (Bai et al., CVPR 2023), labelled and unlabelled slices pasted into each other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from action.data.mixing import paste_both_ways
from action.data.slices import Slices
from action.model.network import Network
from action.model.teacher import StudentTeacher
from action.stages.base import Stage, StageParts, StepResult, TrainingData
from action.stages.losses import masked_segmentation_loss

LABEL, PSEUDO_LABEL = 1.0, 0.5
"""Confidences, which say where a pixel's class comes from; 0 is outside the image."""


class CopyPaste(Stage):
    """L = (L_in + L_out) / 2, each L_seg(pixels with a label) + unlabeled_weight * L_seg(pixels with a pseudo-label).

    In: a box of an unlabelled slice lies in a labelled one, x_l (1 - m) + x_u m; out: the same box of another labelled
    slice lies in the unlabelled one, x_l' m + x_u (1 - m). L_seg is half cross-entropy, half Dice. At first both are
    labelled. Other than the paper: the sum is halved, so that labels weigh as in the other methods; the student sees
    strong views of the pasted slices; pseudo-labels are not cut to their largest component, which is one of volumes.
    """

    name = "copy_paste"
    loss_names = ("loss", "supervised", "unsupervised")
    asks_teacher = True

    def __init__(self, parts: StageParts) -> None:
        super().__init__(parts)
        self._config, self._counts = parts.config.copy_paste, parts.config.baseline
        self.iterations = self._counts.iterations

    def batch(self, data: TrainingData, step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        labeled, count = self._counts.labeled, self._counts.unlabeled
        weak = self.augmentation.weak(data.labeled.batch(step * labeled, labeled), rng)
        pretraining = step < self._config.pretraining * self.iterations
        pool = data.labeled if pretraining else data.unlabeled_or_labeled
        other = self.augmentation.weak(pool.batch(step * count, count, labels=pretraining), rng)
        return {**weak, "weak": other["image"], **({"weak_label": other["label"]} if pretraining else {})}

    def losses(
        self, network: StudentTeacher[Network], batch: Mapping[str, Tensor], step: int, rng: np.random.Generator
    ) -> StepResult:
        sure = torch.full_like(batch["label"], LABEL)
        labeled = {"image": batch["image"], "label": batch["label"], "confidence": sure}
        pasted = paste_both_ways(labeled, self.others(network, batch), self._config.side, rng)
        strong = self.augmentation.strong(pasted, rng)
        logits = self.segmented(network.student, strong["image"]).logits
        ways = slice(len(batch["weak"])), slice(len(batch["weak"]), None)
        supervised, unsupervised = (
            torch.stack([self.part(logits[way], strong, way, source) for way in ways]).mean()
            for source in (LABEL, PSEUDO_LABEL)
        )
        loss = supervised + self._config.unlabeled_weight * unsupervised
        return StepResult(dict(zip(self.loss_names, (loss, supervised, unsupervised), strict=True)))

    def others(self, network: StudentTeacher[Network], batch: Mapping[str, Tensor]) -> Slices:
        """The unlabelled slices with the teacher's classes; labelled ones with their labels in the pretraining."""
        source, label = LABEL, batch.get("weak_label")
        if label is None:
            with torch.no_grad():
                logits = self.segmented(network.teacher, batch["weak"]).logits
            source, label = PSEUDO_LABEL, logits.argmax(dim=1, keepdim=True).to(logits.dtype)
        return {"image": batch["weak"], "label": label, "confidence": torch.full_like(label, source)}

    def part(self, logits: Tensor, slices: Slices, way: slice, source: float) -> Tensor:
        """L_seg of one way's pixels whose class comes from ``source``."""
        mask = slices["confidence"][way] == source
        return masked_segmentation_loss(logits, slices["label"][way], mask, mask.sum())


STAGE = CopyPaste
