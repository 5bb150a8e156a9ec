"""The stages of ACTION and the baselines, a file each; the trainer knows only the interface in ``base``.

A stage is found by its name in ``METHODS`` of ``action.choices``: its file assigns its class to ``STAGE``.
"""

from __future__ import annotations

from importlib import import_module

from action.choices import METHODS
from action.config import RunConfig
from action.data.augment import Augmentation
from action.model.learner import Learner
from action.model.unet import UNet
from action.ranks import ALONE, Ranks
from action.ranks.layers import spread
from action.stages.base import Stage, StageParts

__all__ = ["Stage", "make_learner", "make_stages"]


def make_stages(config: RunConfig, classes: int, ranks: Ranks = ALONE) -> dict[str, Stage]:
    """The stages of the configured method by name, in order; one of zero iterations is there but never run."""
    augmentation = Augmentation(config.augmentation, config.input.size)
    stages: dict[str, Stage] = {}
    for name in METHODS[config.method]:
        kind: type[Stage] = import_module(f"{__name__}.{name}").STAGE
        stages[name] = kind(StageParts(config, classes, augmentation, dict(stages), ranks))
    return stages


def make_learner(config: RunConfig, classes: int, ranks: Ranks = ALONE, *, channels: int = 1) -> Learner:
    """The network and the stages of the configured method, initialised from PyTorch's global generator.

    Args:
        config: settings of the run.
        classes: number of classes, background included.
        ranks: the processes that train.
        channels: of the images.
    """
    network = UNet(channels, classes, config.model.channels, config.model.dropout)
    learner = Learner(network, make_stages(config, classes, ranks), config.optimizer.teacher_momentum)
    spread(learner, ranks)
    return learner
