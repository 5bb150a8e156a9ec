"""What a stage is to the trainer, and the batches that stages share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from action.data.augment import Augmentation, Slices
from action.data.batches import SlicePool
from action.model.learner import Learner


@dataclass(frozen=True)
class TrainingData:
    """Slices of the labelled and of the unlabelled training patients, and how they are augmented."""

    labeled: SlicePool
    unlabeled: SlicePool
    augmentation: Augmentation

    @property
    def unlabeled_or_labeled(self) -> SlicePool:
        """Slices whose labels are not used: where every training patient is labelled, those patients' slices."""
        return self.unlabeled if len(self.unlabeled) else self.labeled


class Stage(Protocol):
    """One part of the training with its own losses.

    Attributes:
        name: as in the configuration, the log and the figures.
        loss_names: keys of what `losses` returns.
        iterations: network updates.
        nesterov: whether the momentum is Nesterov's.
        segments: whether the stage trains the segmentation, so that validation means something.
    """

    name: str
    loss_names: tuple[str, ...]
    iterations: int
    nesterov: bool
    segments: bool

    def batch(self, data: TrainingData, step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """The tensors of step ``step``, on the CPU."""
        ...

    def losses(
        self, learner: Learner, batch: dict[str, Tensor], step: int, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Scalars to log; the one named ``loss`` is minimised."""
        ...

    def finish_step(self, learner: Learner) -> None:
        """After the optimiser and the teacher moved: push what this step produced into the banks."""
        ...


def two_views(
    pool: SlicePool, start: int, count: int, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[Slices, Slices]:
    """A weak view for the teacher, and a strong view of it for the student: separate tensors of the same slices."""
    weak = augmentation.weak(pool.batch(start, count), rng)
    return weak, augmentation.strong(weak, rng)


def distillation_batch(
    data: TrainingData, labeled: int, unlabeled: int, step: int, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Both views of the labelled slices followed by the unlabelled ones, and the labels of the strong view."""
    weak, strong = two_views(data.labeled, step * labeled, labeled, data.augmentation, rng)
    other_weak, other_strong = two_views(data.unlabeled_or_labeled, step * unlabeled, unlabeled, data.augmentation, rng)
    return {
        "weak": torch.cat([weak["image"], other_weak["image"]]),
        "strong": torch.cat([strong["image"], other_strong["image"]]),
        "label": strong["label"],
    }
