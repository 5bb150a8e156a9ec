"""TensorBoard: files in the run's folder ``events``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from action.loggers.base import Logger, Start


class TensorBoard(Logger):
    """See ``Logger``."""

    package = "tensorboard"
    remote = False

    def __init__(self, start: Start) -> None:
        self._writer = SummaryWriter(str(start.folder / "events"), purge_step=start.step + 1 if start.step else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def figure(self, step: int, name: str, path: Path) -> None:
        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


LOGGER = TensorBoard
