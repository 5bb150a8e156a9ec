"""Random views of slices, as tensor operations on whole batches, on the device where these lie.

A view samples image, label and confidence at the same places, so that they always move together. What is drawn for each
slice comes from a NumPy generator, in one order, so that every device sees the same views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from action.config import AugmentationConfig
from action.data.slices import Slices, WholeSlices

NEAREST = frozenset({"label", "confidence"})
"""The label, whose values are names, and the confidence: a pixel keeps its own, and pixels that come from outside the
slice (confidence 0) are not blended in."""
CONTROL_POINTS = 5
"""Of the deformation, along either axis: the image's corners, and four steps between them."""


class Augmentation:
    """Weak (patch and geometry), strong (intensity and deformation) and intensity-only views of slices.

    Each draws for every slice of its own, and returns new tensors: the input is not modified, so the weak and the
    strong view never share memory.

    Args:
        config: ranges and probabilities.
        size: height and width of a patch.
    """

    def __init__(self, config: AugmentationConfig, size: Sequence[int]) -> None:
        self._config, self._size = config, (size[0], size[1])

    def weak(self, slices: WholeSlices, rng: np.random.Generator) -> Slices:
        """A random patch of every slice, flipped, rotated and zoomed about its middle; zero outside the slice."""
        config, (height, width), count = self._config, self._size, len(slices.sizes)
        # The patch lies within the slice; where it is larger, their middles fall together.
        room = np.array(slices.sizes) - [height, width]
        corner = np.where(room >= 0, rng.integers(np.maximum(room, 0) + 1), room // 2)
        angle = np.deg2rad(rng.uniform(-config.rotation, config.rotation, count))
        scale = 1 / rng.uniform(1 - config.zoom, 1 + config.zoom, count)
        flipped = (rng.random(count) < config.flip)[:, None] & (rng.integers(2, size=(count, 1)) == [0, 1])
        signs = np.where(flipped, -1.0, 1.0)  # [B, 2] of rows and columns
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        turn = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2) * signs[:, None]  # [B, 2, 2]
        middle = corner + (np.array([height, width]) - 1) / 2

        device = slices.canvas["image"].device
        affine = torch.from_numpy(np.concatenate([turn, middle[:, :, None]], -1)).to(device, torch.float32)
        y, x = (torch.arange(extent, device=device) - (extent - 1) / 2 for extent in self._size)
        places = torch.stack([*torch.broadcast_tensors(y[:, None], x), torch.ones(height, width, device=device)])
        return _sample(slices.canvas, (affine @ places.flatten(1)).unflatten(-1, self._size))

    def intensity(self, batch: Slices, rng: np.random.Generator) -> Slices:
        """Brightness and contrast of every channel, and blur of the image; nothing moves."""
        config, count = self._config, len(batch["image"])

        def drawn(limits: tuple[float, float], numbers: int, otherwise: float) -> np.ndarray:
            value = rng.uniform(*limits, (numbers, count))
            return np.where(rng.random(count) < config.intensity_probability, value, otherwise)

        image = batch["image"]
        channels = image.shape[1]
        brightness, contrast = (drawn(config.brightness, channels, 1.0).T for _ in range(2))  # [B, channels]
        factors = np.stack([brightness * contrast, brightness * (1 - contrast)])
        gain, offset = torch.from_numpy(factors).to(image.device, image.dtype)[..., None, None]
        changed = image * gain + offset * image.mean(dim=(2, 3), keepdim=True)
        sigma = drawn(config.blur, 2, 0.0)
        blurred = np.flatnonzero(sigma.any(axis=0))
        if len(blurred):
            chosen = torch.from_numpy(blurred).to(image.device)
            deviations = torch.from_numpy(sigma[:, blurred]).to(image.device, image.dtype)
            changed = changed.index_copy(0, chosen, _blurred(changed[chosen], deviations))
        return {**{key: value.clone() for key, value in batch.items()}, "image": changed}

    def strong(self, batch: Slices, rng: np.random.Generator) -> Slices:
        """Brightness, contrast and blur of the image, and one smooth deformation of everything together."""
        config, count = self._config, len(batch["image"])
        result = self.intensity(batch, rng)
        moved = np.flatnonzero(rng.random(count) < config.deformation_probability)
        reach = rng.uniform(0, config.deformation, (count, 1, 1, 1))
        control = reach * rng.uniform(-1, 1, (count, 2, CONTROL_POINTS, CONTROL_POINTS))
        if not len(moved):
            return result
        image = batch["image"]
        chosen = torch.from_numpy(moved).to(image.device)
        coarse = torch.from_numpy(control[moved]).to(image.device, torch.float32)
        shift = F.interpolate(coarse, image.shape[-2:], mode="bicubic", align_corners=True)
        y, x = (torch.arange(extent, device=image.device) for extent in image.shape[-2:])
        places = torch.stack(torch.broadcast_tensors(y[:, None], x)) + shift
        deformed = _sample({key: value[chosen] for key, value in result.items()}, places)
        return {key: value.index_copy(0, chosen, deformed[key]) for key, value in result.items()}


def _sample(batch: Slices, places: Tensor) -> Slices:
    """Values of all tensors at places [B, 2, H, W], rows and columns in pixels; zero outside."""
    extents = torch.tensor(batch["image"].shape[-2:], device=places.device)[:, None, None]
    grid = ((2 * places + 1) / extents - 1).flip(1).movedim(1, -1)  # as grid_sample has it: x first, edges at -1 and 1
    modes = {key: "nearest" if key in NEAREST else "bilinear" for key in batch}
    return {
        key: F.grid_sample(value, grid.to(value.dtype), modes[key], "zeros", align_corners=False)
        for key, value in batch.items()
    }


def _blurred(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of images [B, C, H, W] with deviations [2, B] along rows and columns, pixels; 0 leaves as it is.

    As a product with a matrix for either axis, whose rows sum to 1: a border is not darkened, and every slice has a
    kernel of its own.
    """
    rows, columns = (_blur_matrix(s, extent)[:, None] for s, extent in zip(sigma, image.shape[-2:], strict=True))
    blurred: Tensor = rows @ image @ columns.mT
    return blurred


LEAST = -80.0
"""Of an exponent: the exponential is no subnormal number yet, with which a CPU takes four times as long."""


def _blur_matrix(sigma: Tensor, extent: int) -> Tensor:
    """[B, extent, extent] of deviations [B]."""
    place = torch.arange(extent, device=sigma.device)
    distance = (place[:, None] - place).to(sigma.dtype).square()
    exponent = distance / (-2 * sigma.square().clamp_min(math.ulp(1.0)))[:, None, None]
    weight = exponent.clamp_min(LEAST).exp().masked_fill_(exponent < LEAST, 0.0)
    return weight / weight.sum(dim=-1, keepdim=True)
