"""The stages of ACTION and the baselines, a file each; the trainer knows only the interface in ``base``.

A stage is found by its name in ``METHODS`` of ``action.choices``: its file assigns its class to ``STAGE``. A method
that is a class of the user's is a stage by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from action.choices import METHODS
from action.config import RunConfig
from action.data.augment import Augmentation
from action.errors import InputError
from action.model.build import make_network
from action.model.learner import Learner
from action.model.network import Network
from action.own import is_own, own_class
from action.ranks import ALONE, Ranks
from action.ranks.layers import spread
from action.stages.base import Stage, StageParts

__all__ = ["Stage", "make_learner", "make_stages", "stage_classes", "uses_unlabeled"]


def stage_classes(method: str) -> dict[str, type[Stage]]:
    """The stages of a method by name, in order.

    Raises:
        InputError: the method is a class that cannot be imported, or no stage.
    """
    if is_own(method):
        own = own_class(method, "method", Stage)  # type: ignore[type-abstract]
        return {own.name: own}
    return {name: import_module(f"{__name__}.{name}").STAGE for name in METHODS[method]}


def uses_unlabeled(method: str) -> bool:
    """Whether a method learns from patients without labels."""
    return any(kind.uses_unlabeled for kind in stage_classes(method).values())


def make_stages(
    config: RunConfig, classes: int, ranks: Ranks = ALONE, *, widths: Sequence[int] | None = None
) -> dict[str, Stage]:
    """The stages of the configured method by name, in order; one of zero iterations is there but never run.

    Args:
        config: settings of the run.
        classes: number of classes, background included.
        ranks: the processes that train.
        widths: channels of each of the network's features, coarse to fine; ``None``: of the built-in U-Net's.

    Raises:
        InputError: the method needs features, and the network has none.
    """
    augmentation = Augmentation(config.augmentation, config.input.size)
    widths = tuple(config.model.channels[::-1] if widths is None else widths)
    stages: dict[str, Stage] = {}
    for name, kind in stage_classes(config.method).items():
        if kind.uses_features and not widths:
            raise InputError(
                f"method {config.method} uses features of the network: name layers of {config.model.network} in "
                "model.feature_layers"
            )
        stages[name] = kind(StageParts(config, classes, widths, augmentation, dict(stages), ranks))
    return stages


def make_learner(
    config: RunConfig, classes: int, ranks: Ranks = ALONE, *, channels: int = 1, network: Network | None = None
) -> Learner:
    """The network and the stages of the configured method, initialised from PyTorch's global generator.

    Args:
        config: settings of the run.
        classes: number of classes, background included.
        ranks: the processes that train.
        channels: of the images.
        network: one that has been made already; ``None``: that of the settings.
    """
    network = make_network(config, channels, classes) if network is None else network
    stages = make_stages(config, classes, ranks, widths=network.widths)
    learner = Learner(network, stages, config.optimizer.teacher_momentum)
    spread(learner, ranks)
    return learner
