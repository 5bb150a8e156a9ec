"""Segmentation of whole volumes, slice by slice, with the student network."""

from __future__ import annotations

import numpy as np
import torch
from monai.inferers import SliceInferer
from torch import Tensor, nn

from action.data.volumes import LoadedCase, resize_to_native


@torch.inference_mode()
def probabilities(network: nn.Module, image: np.ndarray, batch: int) -> Tensor:
    """Class probabilities of a volume.

    Args:
        network: U-Net; its mode is restored afterwards.
        image: [Z, H, W] in [0, 1] at network size.
        batch: slices in one forward pass.

    Returns:
        [C, Z, H, W] on the CPU.
    """
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    inferer = SliceInferer(
        spatial_dim=0, roi_size=image.shape[1:], sw_batch_size=batch, sw_device=device, device="cpu", progress=False
    )
    volume = torch.from_numpy(image).float()[None, None]
    result: Tensor = inferer(volume, lambda slices: network(slices).logits.softmax(dim=1))[0]
    network.train(training)
    return result


def segment(network: nn.Module, case: LoadedCase, batch: int) -> np.ndarray:
    """Labels of a case on its file's own grid, uint8 [Z, Y, X]."""
    return resize_to_native(probabilities(network, case.image, batch), case.shape, case.box)
