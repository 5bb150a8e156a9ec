"""Stage 3: pseudo-labels on mixed strong views, and hard pixels contrasted with sparse negatives."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from action.config import TrainConfig
from action.data.augment import Augmentation
from action.model.heads import Pixels
from action.model.learner import Learner
from action.stages.base import TrainingData, two_views
from action.stages.losses import pseudo_label_loss, ramp_up, segmentation_loss, zero_like
from action.stages.mixing import mix
from action_kernels import anatomical_contrast, hard_negatives, relation_negatives


class AnatomicalContrast:
    """L = L_sup + unsupervised_weight * L_unsup + contrast_weight * L_anco.

    Queries are the student's representations of hard pixels in its strong views. Keys (positives, class relation,
    negatives) are the teacher's representations in the weak views: they carry no gradient and change slowly, so that
    those in the pixel bank stay comparable.
    """

    name = "anatomical_contrast"
    loss_names = ("loss", "supervised", "unsupervised", "contrast", "confident")
    nesterov = True
    segments = True

    def __init__(self, config: TrainConfig) -> None:
        self._config = config.anatomical_contrast
        self._augmentation = Augmentation(config.augmentation, config.input.size)
        self.iterations = self._config.iterations

    def batch(self, data: TrainingData, step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        config = self._config
        weak, strong = two_views(data.labeled, step * config.labeled, config.labeled, data.augmentation, rng)
        pool, count = data.unlabeled_or_labeled, config.unlabeled
        unlabeled = data.augmentation.weak({"image": pool.batch(step * count, count)["image"]}, rng)
        return {
            "weak": torch.cat([weak["image"], unlabeled["image"]]),
            "weak_label": weak["label"],
            "strong": strong["image"],
            "label": strong["label"],
        }

    def losses(
        self, learner: Learner, batch: dict[str, Tensor], step: int, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        config = self._config
        labeled = len(batch["label"])
        with torch.no_grad():
            teacher = learner.teacher(batch["weak"])
            probability = teacher.logits.softmax(dim=1)
            if config.pseudo_label_alignment:
                probability[labeled:] = learner.class_shares.align(probability[labeled:], batch["weak_label"])
            confidence, label = probability.max(dim=1, keepdim=True)
            # A labelled pixel is certain.
            label[:labeled] = batch["weak_label"].long()
            confidence[:labeled] = 1.0
        slices = {"image": batch["weak"], "label": label.float(), "confidence": confidence}
        pseudo = {key: value[labeled:] for key, value in slices.items()}
        pseudo = self.strong_view(pseudo, self.partners(slices, labeled, rng), rng)

        student = learner.student(torch.cat([batch["strong"], pseudo["image"]]))
        supervised = segmentation_loss(student.logits[:labeled], batch["label"])
        unsupervised, confident = pseudo_label_loss(
            student.logits[labeled:],
            pseudo["label"],
            pseudo["confidence"],
            config.strong_threshold,
            config.pseudo_label_threshold,
            config.pseudo_label_dice,
        )
        # A pixel that the weak threshold refuses has no class (-1).
        key_class = torch.where(confidence >= config.weak_threshold, label, -1)[:, 0]
        unlabeled_class = torch.where(pseudo["confidence"] >= config.weak_threshold, pseudo["label"].long(), -1)
        query_class = torch.cat([batch["label"].long(), unlabeled_class])[:, 0]
        contrast = self.contrast(learner, student, query_class, teacher, key_class, rng)
        weight = config.unsupervised_weight * ramp_up(step, config.ramp_up * self.iterations)
        loss = supervised + weight * unsupervised + config.contrast_weight * contrast
        return {
            "loss": loss,
            "supervised": supervised,
            "unsupervised": unsupervised,
            "contrast": contrast,
            "confident": confident,
        }

    def partners(self, slices: dict[str, Tensor], labeled: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """For each unlabelled slice (those from ``labeled`` on) the one that is mixed into it."""
        if self._config.mix_with == "unlabeled":
            return {key: value[labeled:].roll(1, dims=0) for key, value in slices.items()}
        chosen = torch.from_numpy(rng.integers(labeled, size=len(slices["image"]) - labeled))
        return {key: value[chosen.to(value.device)] for key, value in slices.items()}

    def strong_view(
        self, pseudo: dict[str, Tensor], partner: dict[str, Tensor], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Mixed and augmented slices with their labels and confidences, all moved together."""
        mixed = mix(pseudo, partner, self._config.mix, rng)
        device = mixed["image"].device
        strong = self._augmentation.strong({key: value.cpu() for key, value in mixed.items()}, rng)
        return {key: value.to(device) for key, value in strong.items()}

    def contrast(
        self, learner: Learner, student, query_class: Tensor, teacher, key_class: Tensor, rng: np.random.Generator
    ) -> Tensor:
        """L_anco = mean over classes of the mean over hard queries of the InfoNCE loss.

        Args:
            student, teacher: outputs of the networks for the strong and the weak views.
            query_class, key_class: class of each pixel [B, H, W] in the strong and in the weak views, -1: not valid.
        """
        config, classes = self._config, learner.classes
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        with torch.no_grad():
            probability = student.logits.softmax(dim=1).gather(1, query_class.clamp_min(0)[:, None])[:, 0]
            hard = torch.where(probability < config.strong_threshold, query_class, -1)
            queries, query_labels = sample_pixels(hard, classes, config.queries, generator)
            keys, key_labels = sample_pixels(key_class, classes, config.keys, generator)
            key_rows = F.normalize(learner.teacher.representation(teacher.features, keys), dim=1)
        self._keys, self._key_labels = key_rows, key_labels
        query = learner.student.representation(student.features, queries)

        # A class takes part when the batch has keys of it: their mean is its positive.
        membership = F.one_hot(key_labels, classes).to(key_rows.dtype)  # [P, C]
        positives = F.normalize(membership.T @ key_rows, dim=1)  # [C, dim]; zero for an absent class
        present = membership.sum(dim=0) > 0
        usable = present[query_labels]
        query, query_labels = query[usable], query_labels[usable]
        if len(query) == 0 or len(key_rows) == 0:
            return zero_like(query)

        if config.negatives == "bank" and len(learner.pixel_bank):
            bank, bank_labels = learner.pixel_bank.rows, learner.pixel_bank.labels
        else:
            bank, bank_labels = key_rows, key_labels
        if config.selection == "hardest":
            _, index = hard_negatives(
                query.detach(), bank, config.negatives_per_query, query_labels=query_labels, bank_labels=bank_labels
            )
        else:
            relation = (positives @ positives.T / config.temp).exp() * present  # [C, C]
            index = relation_negatives(
                query_labels, bank_labels, relation, config.negatives_per_query, seed=int(rng.integers(2**63))
            )
        loss = self.info_nce(query, positives[query_labels], bank, index, config.temp)
        queries_of_class = torch.bincount(query_labels, minlength=classes)
        weight = 1.0 / (queries_of_class * (queries_of_class > 0).sum()).clamp_min(1)
        return (loss * weight[query_labels]).sum()

    def info_nce(self, query: Tensor, positive: Tensor, bank: Tensor, index: Tensor, temp: float) -> Tensor:
        """Loss [Q] of every query against its positive [Q, dim] and the bank rows that its index [Q, k] names."""
        return anatomical_contrast(query, positive, bank, index, temp=temp, reduction="none")

    def finish_step(self, learner: Learner) -> None:
        learner.pixel_bank.push(self._keys, self._key_labels)


def sample_pixels(pixel_class: Tensor, classes: int, count: int, generator: torch.Generator) -> tuple[Pixels, Tensor]:
    """At most ``count`` random pixels of each class without repetition.

    Args:
        pixel_class: [B, H, W] int64; -1 is never drawn.

    Returns:
        The pixels and their classes [P].
    """
    height, width = pixel_class.shape[1:]
    flat = pixel_class.flatten()
    chosen = []
    for c in range(classes):
        places = (flat == c).nonzero()[:, 0]
        order = torch.randperm(len(places), generator=generator)[:count]
        chosen.append(places[order.to(places.device)])
    place = torch.cat(chosen)
    row, x = place // width, place % width
    return Pixels(row // height, row % height, x), flat[place]
