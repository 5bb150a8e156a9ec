"""Whether networks and banks fit the device's memory at all, before the system kills the process for trying."""

from __future__ import annotations

import os

import torch

from action.config import TrainConfig
from action.errors import InputError
from action.model.learner import SegmentationModel, window_positions

FLOAT = 4  # bytes


def check_memory(config: TrainConfig, classes: int, device: torch.device) -> None:
    """Compare what is certain to be held during training with the memory of the device; allocates nothing.

    Activations are not counted: they depend on what the batches need at their largest.

    Raises:
        InputError: names the sizes that are too large.
    """
    with torch.device("meta"):
        model = SegmentationModel(config, classes)
    weights = sum(value.numel() for value in model.state_dict().values())
    dim = config.model.embedding
    # The student's weights, gradients and momentum, and the teacher's weights.
    parts = {
        f"the networks of model.channels {config.model.channels} and model.embedding {dim}": 4 * weights,
        f"global_distillation.bank {config.global_distillation.bank}": config.global_distillation.bank * dim,
        f"local_distillation.bank {config.local_distillation.bank}": config.local_distillation.bank
        * window_positions(config)
        * model.local_head.dim,
        f"anatomical_contrast.pixel_bank {config.anatomical_contrast.pixel_bank}": config.anatomical_contrast.pixel_bank
        * dim,
    }
    available, needed = _memory(device), FLOAT * sum(parts.values())
    if needed > available:
        largest = max(parts, key=parts.__getitem__)
        raise InputError(
            f"{largest} would take {FLOAT * parts[largest] / 2**30:.1f} GiB of the {needed / 2**30:.1f} GiB that "
            f"networks and banks need, but {device} has {available / 2**30:.1f} GiB: choose smaller ones"
        )


def _memory(device: torch.device) -> int:
    """Bytes that the device has altogether."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
