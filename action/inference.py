"""Segmentation of whole volumes, slice by slice, with the student network."""

from __future__ import annotations

import numpy as np
import torch
from monai.inferers import SliceInferer
from torch import Tensor, nn

from action.data.volumes import LoadedCase, resize_to_native

OVERLAP = 0.5
"""Of neighbouring windows, as a share of their sides."""


@torch.inference_mode()
def probabilities(network: nn.Module, image: np.ndarray, size: tuple[int, int], batch: int) -> Tensor:
    """Class probabilities of a volume: of a window that slides over every slice, averaged where windows overlap.

    Args:
        network: U-Net; its mode is restored afterwards.
        image: [Z, channels, H, W] in [0, 1] at the network's spacing.
        size: height and width of the window, as in training; smaller slices are padded.
        batch: windows in one forward pass.

    Returns:
        [C, Z, H, W] on the CPU.
    """
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    inferer = SliceInferer(
        spatial_dim=0,
        roi_size=size,
        sw_batch_size=batch,
        overlap=OVERLAP,
        mode="gaussian",  # a window is surest in its middle
        sw_device=device,
        device="cpu",
        progress=False,
    )
    volume = torch.from_numpy(image).float().movedim(1, 0)[None]
    result: Tensor = inferer(volume, lambda slices: network(slices).logits.softmax(dim=1))[0]
    network.train(training)
    return result


def segment(network: nn.Module, case: LoadedCase, size: tuple[int, int], batch: int) -> np.ndarray:
    """Labels of a case on its file's own grid, uint8 [Z, Y, X]; ``size`` and ``batch`` as in ``probabilities``."""
    return resize_to_native(probabilities(network, np.asarray(case.image), size, batch), case.shape, case.box)
