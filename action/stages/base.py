"""What a stage is to the trainer, and the batches that stages share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from action.config import RunConfig
from action.data.augment import Augmentation
from action.data.batches import SlicePool
from action.data.slices import Slices
from action.model.network import Network, NetworkOutput
from action.model.teacher import StudentTeacher
from action.ranks import ALONE, Ranks
from action_kernels import MemoryBank


@dataclass(frozen=True)
class TrainingData:
    """Slices of the labelled and of the unlabelled training patients."""

    labeled: SlicePool
    unlabeled: SlicePool

    @property
    def unlabeled_or_labeled(self) -> SlicePool:
        """Slices whose labels are not used: where every training patient is labelled, those patients' slices."""
        return self.unlabeled if len(self.unlabeled) else self.labeled


class Push(NamedTuple):
    """Rows for a memory bank, pushed once the optimiser and the teacher have moved."""

    bank: MemoryBank
    rows: Tensor
    labels: Tensor | None = None


class StepResult(NamedTuple):
    """What a stage computes in one step.

    Attributes:
        losses: scalars to log; the one named ``loss`` is minimised.
        to_push: what the step leaves to the banks.
    """

    losses: dict[str, Tensor]
    to_push: Sequence[Push] = ()


@dataclass(frozen=True)
class StageParts:
    """What a stage is built from.

    Args:
        config: settings of the run.
        classes: number of classes, background included.
        widths: channels of each of the network's features, coarse to fine.
        augmentation: random views of slices.
        earlier: the stages before this one, by name.
        ranks: the processes that train.
    """

    config: RunConfig
    classes: int
    widths: tuple[int, ...]
    augmentation: Augmentation
    earlier: Mapping[str, Stage]
    ranks: Ranks = ALONE


class Stage(nn.Module, ABC):
    """One part of the training with its own heads, banks and losses; each is built from ``StageParts``.

    A bank is an attribute of the name that its size has in the stage's settings.

    Attributes:
        name: as in the log, the figures, and ``METHODS`` of ``action.choices``; also the name of the stage's file.
        loss_names: keys of the losses.
        segments: whether the stage trains the segmentation, so that validation means something.
        asks_teacher: whether it learns from what the teacher segments, so that the teacher is validated, too.
        uses_unlabeled: whether it learns from slices without labels.
        uses_features: whether it uses the network's features, and not its logits alone.
        iterations: network updates.
        nesterov: whether the momentum is Nesterov's.
    """

    name: ClassVar[str]
    loss_names: ClassVar[tuple[str, ...]]
    segments: ClassVar[bool] = True
    asks_teacher: ClassVar[bool] = False
    uses_unlabeled: ClassVar[bool] = True
    uses_features: ClassVar[bool] = False
    iterations: int
    nesterov: bool = True

    def __init__(self, parts: StageParts) -> None:
        super().__init__()
        self.augmentation, self.ranks = parts.augmentation, parts.ranks

    @abstractmethod
    def batch(self, data: TrainingData, step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """The tensors of step ``step``, where the data lie."""

    @abstractmethod
    def losses(
        self, network: StudentTeacher[Network], batch: Mapping[str, Tensor], step: int, rng: np.random.Generator
    ) -> StepResult:
        """The losses of a batch that lies on the network's device. Changes no bank."""

    def segmented(self, network: Network, images: Tensor) -> NetworkOutput:
        """The network's logits of all images of a batch, and the decoder maps of this process's share."""
        output: NetworkOutput = network(self.ranks.own(images))
        return NetworkOutput(self.ranks.joined(output.logits), output.features)

    def two_views(self, pool: SlicePool, start: int, count: int, rng: np.random.Generator) -> tuple[Slices, Slices]:
        """A weak view for the teacher, and a strong view of it for the student: separate tensors of the same slices."""
        weak = self.augmentation.weak(pool.batch(start, count), rng)
        return weak, self.augmentation.strong(weak, rng)

    def unlabeled_view(self, data: TrainingData, step: int, count: int, rng: np.random.Generator) -> Tensor:
        """The weak view of ``count`` slices whose labels are not used, [count, channels, H, W]."""
        pool = data.unlabeled_or_labeled
        return self.augmentation.weak(pool.batch(step * count, count, labels=False), rng)["image"]

    def distillation_batch(
        self, data: TrainingData, labeled: int, unlabeled: int, step: int, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Both views of the labelled slices followed by the unlabelled ones, and the labels of the strong view."""
        weak, strong = self.two_views(data.labeled, step * labeled, labeled, rng)
        other_weak, other_strong = self.two_views(data.unlabeled_or_labeled, step * unlabeled, unlabeled, rng)
        return {
            "weak": torch.cat([weak["image"], other_weak["image"]]),
            "strong": torch.cat([strong["image"], other_strong["image"]]),
            "label": strong["label"],
        }
