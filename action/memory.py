"""Whether networks and banks fit the device's memory at all, before the system kills the process for trying."""

from __future__ import annotations

import os

import torch

from action.config import RunConfig
from action.errors import InputError
from action.model.build import described
from action.model.network import Network
from action.stages import make_learner
from action_kernels import MemoryBank

FLOAT = 4  # bytes


def check_memory(
    config: RunConfig, classes: int, device: torch.device, *, channels: int = 1, network: Network | None = None
) -> None:
    """Compare what is certain to be held during training with the memory of the device; allocates next to nothing.

    Activations are not counted: they depend on what the batches need at their largest.

    Args:
        config: settings of the run.
        classes: number of classes, background included.
        device: that trains.
        channels: of the images.
        network: one that has been made already; ``None``: that of the settings, which is not made for this.

    Raises:
        InputError: names the sizes that are too large.
    """
    with torch.device("meta"):
        learner = make_learner(config, classes, channels=channels, network=network)
    weights = sum(value.numel() for value in learner.trained())
    # The student's weights, gradients and momentum, and the teacher's weights.
    numbers = {f"the networks of {described(config.model)} and model.embedding {config.model.embedding}": 4 * weights}
    for name, module in learner.stages.named_modules():
        if isinstance(module, MemoryBank):  # under the name of its setting
            numbers[f"{name} {module.capacity}"] = module.features.numel()
    available, needed = _memory(device), FLOAT * sum(numbers.values())
    if needed > available:
        largest = max(numbers, key=numbers.__getitem__)
        raise InputError(
            f"{largest} would take {FLOAT * numbers[largest] / 2**30:.1f} GiB of the {needed / 2**30:.1f} GiB that "
            f"networks and banks need, but {device} has {available / 2**30:.1f} GiB: choose smaller ones"
        )


def _memory(device: torch.device) -> int:
    """Bytes that the device has altogether."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
