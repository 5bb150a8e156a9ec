"""Stage 3: pseudo-labels on mixed strong views, and hard pixels contrasted with sparse negatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from action.data.slices import Slices
from action.model.heads import Pixels, RepresentationHead
from action.model.network import Network, NetworkOutput
from action.model.teacher import StudentTeacher
from action.stages.adaptive_contrast import cosine_temperature, nearest_anchors, spread_anchors
from action.stages.base import Push, StageParts, StepResult
from action.stages.losses import zero_like
from action.stages.pseudo_labeling import PseudoLabeling
from action_kernels import MemoryBank, anatomical_contrast, hard_negatives, relation_negatives


class AnatomicalContrast(PseudoLabeling):
    """L = L_sup + unsupervised_weight * L_unsup + contrast_weight * L_anco.

    Queries are the student's representations of hard pixels in its strong views. Keys (positives, class relation,
    negatives) are the teacher's representations in the weak views: they carry no gradient and change slowly, so that
    those in the pixel bank stay comparable. The variant action++ adds anchor_weight times the same InfoNCE loss with
    another positive, the class's anchor, and its temperature of both goes through ``temp_range``.
    """

    anchors: Tensor  # [C, embedding], of the variant action++

    name = "anatomical_contrast"
    loss_names = ("loss", "supervised", "unsupervised", "contrast", "confident")
    uses_features = True

    def __init__(self, parts: StageParts) -> None:
        super().__init__(parts)
        config, model = parts.config.anatomical_contrast, parts.config.model
        self.iterations = config.iterations
        self.representation = StudentTeacher(RepresentationHead(parts.widths, model.embedding))
        self.pixel_bank = MemoryBank(config.pixel_bank, model.embedding, labeled=True, normalize=False)
        if config.variant == "action++":
            self.register_buffer("anchors", spread_anchors(parts.classes, model.embedding), persistent=False)

    def losses(
        self, network: StudentTeacher[Network], batch: Mapping[str, Tensor], step: int, rng: np.random.Generator
    ) -> StepResult:
        config = self._config
        seen = self.seen(network, batch, rng)
        losses = self.pseudo_label_losses(seen, batch["label"], step)
        pushes = []
        if config.contrast_weight:
            key_class = self.sure_class(seen.weak)
            query_class = torch.cat([batch["label"].long()[:, 0], self.sure_class(seen.strong)])
            contrast, push = self.contrast(seen.student, query_class, seen.teacher, key_class, step, rng)
            pushes.append(push)
        else:
            contrast = zero_like(seen.student.logits)
        losses |= {"loss": losses["loss"] + config.contrast_weight * contrast, "contrast": contrast}
        return StepResult(losses, pushes)

    def sure_class(self, slices: Slices) -> Tensor:
        """Class of each pixel [B, H, W]; a pixel whose confidence is below the weak threshold has none (-1)."""
        return torch.where(slices["confidence"] >= self._config.weak_threshold, slices["label"].long(), -1)[:, 0]

    def contrast(
        self,
        student: NetworkOutput,
        query_class: Tensor,
        teacher: NetworkOutput,
        key_class: Tensor,
        step: int,
        rng: np.random.Generator,
    ) -> tuple[Tensor, Push]:
        """L_anco = mean over classes of the mean over hard queries of the InfoNCE loss; and the keys for the bank.

        Args:
            student: output for the strong views; the maps are those of this process's share.
            query_class: class of each pixel [B, H, W] there, -1: not valid.
            teacher: output for the weak views, likewise.
            key_class: class of each pixel [B, H, W] there, -1: not valid.
            step: decides the temperature of the variant action++.
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
        if config.variant == "action++":
            temp = cosine_temperature(step, self.iterations, *config.temp_range)
            anchor = self.anchors[nearest_anchors(positives, self.anchors)]
            pull = self.info_nce(query, anchor[query_labels], bank, index, temp)
            loss = self.info_nce(query, positives[query_labels], bank, index, temp) + config.anchor_weight * pull
        else:
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
    numbers = torch.zeros(len(lines), classes + 1, dtype=torch.int64, device=lines.device)
    numbers.scatter_add_(1, lines + 1, torch.ones_like(lines))
    in_line = numbers[:, 1:].T  # [C, B * H]
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
