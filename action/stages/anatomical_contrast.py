"""Stage 3: pseudo-labels on mixed strong views, and hard pixels contrasted with sparse negatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from action.data.mixing import mix
from action.data.slices import Slices
from action.model.class_shares import ClassShares
from action.model.heads import Pixels, RepresentationHead
from action.model.teacher import StudentTeacher
from action.model.unet import UNet, UNetOutput
from action.stages.base import Push, Stage, StageParts, StepResult, TrainingData
from action.stages.losses import pseudo_label_loss, ramp_up, segmentation_loss, zero_like
from action_kernels import MemoryBank, anatomical_contrast, hard_negatives, relation_negatives


class AnatomicalContrast(Stage):
    """L = L_sup + unsupervised_weight * L_unsup + contrast_weight * L_anco.

    Queries are the student's representations of hard pixels in its strong views. Keys (positives, class relation,
    negatives) are the teacher's representations in the weak views: they carry no gradient and change slowly, so that
    those in the pixel bank stay comparable.
    """

    name = "anatomical_contrast"
    loss_names = ("loss", "supervised", "unsupervised", "contrast", "confident")

    def __init__(self, parts: StageParts) -> None:
        super().__init__(parts)
        self._config = parts.config.anatomical_contrast
        self._classes = parts.classes
        self.iterations = self._config.iterations
        model = parts.config.model
        self.representation = StudentTeacher(RepresentationHead(model.channels[::-1], model.embedding))
        self.pixel_bank = MemoryBank(self._config.pixel_bank, model.embedding, labeled=True, normalize=False)
        self.class_shares = ClassShares(parts.classes, parts.config.optimizer.teacher_momentum)

    def batch(self, data: TrainingData, step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        config = self._config
        weak, strong = self.two_views(data.labeled, step * config.labeled, config.labeled, rng)
        pool, count = data.unlabeled_or_labeled, config.unlabeled
        unlabeled = self.augmentation.weak(pool.batch(step * count, count, labels=False), rng)
        return {
            "weak": torch.cat([weak["image"], unlabeled["image"]]),
            "weak_label": weak["label"],
            "strong": strong["image"],
            "label": strong["label"],
        }

    def losses(
        self, network: StudentTeacher[UNet], batch: Mapping[str, Tensor], step: int, rng: np.random.Generator
    ) -> StepResult:
        config = self._config
        labeled = len(batch["label"])
        with torch.no_grad():
            teacher = self.segmented(network.teacher, batch["weak"])
        label, confidence = self.pseudo_labels(teacher, batch["weak_label"])
        slices = {"image": batch["weak"], "label": label.float(), "confidence": confidence}
        pseudo = {key: value[labeled:] for key, value in slices.items()}
        pseudo = self.strong_view(pseudo, self.partners(slices, labeled, rng), rng)

        student = self.segmented(network.student, torch.cat([batch["strong"], pseudo["image"]]))
        supervised = segmentation_loss(student.logits[:labeled], batch["label"])
        unsupervised, confident = pseudo_label_loss(
            student.logits[labeled:],
            pseudo["label"],
            pseudo["confidence"],
            config.strong_threshold,
            config.pseudo_label_threshold,
            config.pseudo_label_dice,
        )
        # A pixel whose confidence is below the weak threshold has no class (-1).
        key_class = torch.where(confidence >= config.weak_threshold, label, -1)[:, 0]
        unlabeled_class = torch.where(pseudo["confidence"] >= config.weak_threshold, pseudo["label"].long(), -1)
        query_class = torch.cat([batch["label"].long(), unlabeled_class])[:, 0]
        pushes = []
        if config.contrast_weight:
            contrast, push = self.contrast(student, query_class, teacher, key_class, rng)
            pushes.append(push)
        else:
            contrast = zero_like(student.logits)
        weight = config.unsupervised_weight * ramp_up(step, config.ramp_up * self.iterations)
        losses = {
            "loss": supervised + weight * unsupervised + config.contrast_weight * contrast,
            "supervised": supervised,
            "unsupervised": unsupervised,
            "contrast": contrast,
            "confident": confident,
        }
        return StepResult(losses, pushes)

    @torch.no_grad()
    def pseudo_labels(self, teacher: UNetOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
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

    def contrast(
        self,
        student: UNetOutput,
        query_class: Tensor,
        teacher: UNetOutput,
        key_class: Tensor,
        rng: np.random.Generator,
    ) -> tuple[Tensor, Push]:
        """L_anco = mean over classes of the mean over hard queries of the InfoNCE loss; and the keys for the bank.

        Args:
            student: output for the strong views; the maps are those of this process's share.
            query_class: class of each pixel [B, H, W] there, -1: not valid.
            teacher: output for the weak views, likewise.
            key_class: class of each pixel [B, H, W] there, -1: not valid.
            rng: draws pixels and negatives.
        """
        config, classes = self._config, self._classes
        with torch.no_grad():
            probability = student.logits.softmax(dim=1).gather(1, query_class.clamp_min(0)[:, None])[:, 0]
            hard = torch.where(probability < config.strong_threshold, query_class, -1)
            queries, query_labels = sample_pixels(hard, classes, config.queries, rng)
            keys, key_labels = sample_pixels(key_class, classes, config.keys, rng)
            key_rows = self.represented(self.representation.teacher, teacher.features, keys)
        push = Push(self.pixel_bank, key_rows, key_labels)
        query = self.represented(self.representation.student, student.features, queries)

        # A class takes part when the batch has keys of it: their mean is its positive.
        names = torch.arange(classes, device=key_labels.device)
        membership = (key_labels[:, None] == names).to(key_rows.dtype)  # [P, C]
        positives = F.normalize(membership.T @ key_rows, dim=1)  # [C, dim]; zero for an absent class
        present = membership.sum(dim=0) > 0
        query_labels, found = query_labels.clamp_min(0), query_labels >= 0
        usable = found & present[query_labels]

        bank, bank_labels = key_rows, key_labels
        if config.negatives == "bank" and self.pixel_bank.labels is not None and len(self.pixel_bank):
            bank, bank_labels = self.pixel_bank.rows, self.pixel_bank.labels
        if config.selection == "hardest":
            _, index = hard_negatives(
                query.detach(),
                bank,
                config.negatives_per_query,
                query_labels=query_labels,
                bank_labels=bank_labels,
                normalize=False,
            )
        else:
            relation = (positives @ positives.T / config.temp).exp() * present  # [C, C]
            index = relation_negatives(
                query_labels, bank_labels, relation, config.negatives_per_query, seed=int(rng.integers(2**63))
            )
        loss = self.info_nce(query, positives[query_labels], bank, index, config.temp)
        queries_of_class = ((query_labels[:, None] == names) & usable[:, None]).sum(dim=0)
        weight = 1.0 / (queries_of_class * (queries_of_class > 0).sum()).clamp_min(1)
        return (loss * weight[query_labels] * usable).sum(), push

    def represented(self, head: RepresentationHead, features: Sequence[Tensor], pixels: Pixels) -> Tensor:
        """Unit representations [P, dim] of pixels of the whole batch; a process has the maps of its share of it."""
        order = sizes = None
        if self.ranks.world > 1:
            slices = self.ranks.sizes(self.ranks.batch)
            order = pixels.image.argsort(stable=True)
            ends = torch.tensor(slices, device=order.device).cumsum(0)
            sizes = torch.searchsorted(pixels.image[order], ends).diff(prepend=ends.new_zeros(1)).tolist()
            own = order.split(sizes)[self.ranks.rank]
            pixels = Pixels(pixels.image[own] - sum(slices[: self.ranks.rank]), pixels.y[own], pixels.x[own])
        rows: Tensor = head(features, pixels)
        rows = F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)
        return rows if order is None or sizes is None else self.ranks.join(rows, sizes)[order.argsort()]

    def info_nce(self, query: Tensor, positive: Tensor, bank: Tensor, index: Tensor, temp: float) -> Tensor:
        """Loss [Q] of every query against its positive [Q, dim] and the bank rows that its index [Q, k] names.

        All rows are unit rows.
        """
        return anatomical_contrast(query, positive, bank, index, temp=temp, normalize=False, reduction="none")


def sample_pixels(pixel_class: Tensor, classes: int, count: int, rng: np.random.Generator) -> tuple[Pixels, Tensor]:
    """``count`` random pixels of each class: a number that no pixel decides, so that a GPU need not be waited for.

    The pixels of a class, in the order of the batch and from a random one on, are cut into ``count`` runs of equal
    length, and one of each is drawn: all are as likely, none comes twice, and the draw spreads over all slices. A class
    of fewer than ``count`` pixels repeats them; the places of a class without pixels go to pixels of all classes.

    Args:
        pixel_class: [B, H, W] int64; -1 is never drawn where there is anything else.
        classes: number of classes.
        count: see above.
        rng: on the host, so that every device draws the same pixels.

    Returns:
        The pixels and their classes [classes * count].
    """
    height = pixel_class.shape[1]
    lines = pixel_class.flatten(0, 1)  # [B * H, W]
    names = torch.arange(classes, device=lines.device)[:, None, None]
    in_line = (lines == names).sum(dim=2)  # [C, B * H]
    absent = in_line.sum(dim=1, keepdim=True) == 0
    before = torch.where(absent, in_line.sum(dim=0), in_line).cumsum(dim=1)  # pixels up to the end of each line
    pixels = before[:, -1:]
    bounds = torch.arange(count + 1, device=lines.device) * pixels // count
    first, length = bounds[:, :-1], bounds.diff(dim=1)
    drawn = torch.from_numpy(rng.random((classes, count + 1))).to(lines.device)
    chosen = first + (drawn[:, 1:] * length).long() + (drawn[:, :1] * pixels).long()
    rank = chosen % pixels.clamp_min(1) + 1  # of the pixel among those of its class
    line = torch.searchsorted(before, rank).clamp_max(len(lines) - 1)
    around = lines[line]  # [C, count, W]
    members = torch.where(absent[..., None], around >= 0, around == names)
    rank = rank - before.gather(1, line) + members.sum(dim=2)
    x = torch.searchsorted(members.cumsum(dim=2), rank[..., None]).clamp_max(lines.shape[1] - 1)
    picked = around.gather(2, x).flatten()
    line = line.flatten()
    return Pixels(line // height, line % height, x.flatten()), picked


STAGE = AnatomicalContrast
