"""Weights & Biases: the project is WANDB_PROJECT or "action"; WANDB_MODE=offline keeps all on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from action.loggers.base import Logger, Start


class WeightsAndBiases(Logger):
    """See ``Logger``."""

    package = "wandb"

    def __init__(self, start: Start) -> None:
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "action"),
            name=start.folder.name,
            config=dict(start.settings),
            id=start.identity,
            resume="allow",
        )
        self.identity = self._run.id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def figure(self, step: int, name: str, path: Path) -> None:
        self._run.log({name: self._image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


LOGGER = WeightsAndBiases
