"""Baseline: consistency of weak, strong and perturbed views, after UniMatch (Yang et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from action.data.mixing import mix
from action.model.network import Network
from action.model.teacher import StudentTeacher
from action.stages.base import Stage, StageParts, StepResult, TrainingData
from action.stages.losses import consistency_loss, segmentation_loss


class UniMatch(Stage):
    """L = L_sup + strong_weight * (H(s_1) + H(s_2)) / 2 + feature_weight * H(f).

    Pseudo-labels are the classes of a weak view at pixels of confidence >= threshold. s_1 and s_2 are two strong views
    of it, mixed by CutMix; f is the weak view with channels of every encoder map dropped. H: see ``consistency_loss``.
    Other than the paper: the averaged teacher, not the student, makes the pseudo-labels, and L is not halved, so that
    labels weigh as in the other methods.
    """

    name = "unimatch"
    loss_names = ("loss", "supervised", "strong", "feature", "confident")
    asks_teacher = True
    uses_features = True

    def __init__(self, parts: StageParts) -> None:
        super().__init__(parts)
        self._config, self._counts = parts.config.unimatch, parts.config.baseline
        self.iterations = self._counts.iterations

    def batch(self, data: TrainingData, step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        _, labeled = self.two_views(data.labeled, step * self._counts.labeled, self._counts.labeled, rng)
        return {**labeled, "weak": self.unlabeled_view(data, step, self._counts.unlabeled, rng)}

    def losses(
        self, network: StudentTeacher[Network], batch: Mapping[str, Tensor], step: int, rng: np.random.Generator
    ) -> StepResult:
        config = self._config
        with torch.no_grad():
            probability = self.segmented(network.teacher, batch["weak"]).logits.softmax(dim=1)
        confidence, label = probability.max(dim=1, keepdim=True)
        weak = {"image": batch["weak"], "label": label.to(confidence.dtype), "confidence": confidence}
        partner = {key: value.roll(1, dims=0) for key, value in weak.items()}
        views = [self.augmentation.strong(mix(weak, partner, "cutmix", rng), rng) for _ in range(2)] + [weak]
        images = torch.cat([batch["image"], *(view["image"] for view in views)])
        logits = self.perturbed(network.student, images, len(batch["weak"]), rng)
        labeled, *others = logits.split([len(batch["image"])] + 3 * [len(batch["weak"])])
        supervised = segmentation_loss(labeled, batch["label"])
        first, second, feature = (
            consistency_loss(x, view["label"], view["confidence"], config.threshold)
            for x, view in zip(others, views, strict=True)
        )
        strong = (first + second) / 2
        loss = supervised + config.strong_weight * strong + config.feature_weight * feature
        confident = (confidence >= config.threshold).to(confidence.dtype).mean()
        values = {"loss": loss, "supervised": supervised, "strong": strong, "feature": feature, "confident": confident}
        return StepResult(values)

    def perturbed(self, network: Network, images: Tensor, count: int, rng: np.random.Generator) -> Tensor:
        """Logits [B, C, H, W] of a batch; the last ``count`` slices lose random channels of the encoder's maps."""
        kept = 1.0 - self._config.drop

        def drop(maps: Tensor) -> Tensor:
            # Drawn for the whole batch on the host, so that every process and device drops the same channels.
            scale = np.ones((len(images), maps.shape[1]))
            scale[-count:] = (rng.random((count, maps.shape[1])) < kept) / kept
            own = self.ranks.own(torch.from_numpy(scale))[:, :, None, None]
            return maps * own.to(maps.device, maps.dtype)

        return self.ranks.joined(network.perturbed(self.ranks.own(images), drop))


STAGE = UniMatch
