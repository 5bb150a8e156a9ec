"""Random views of slices. A draw moves the image, its label and its confidence together (MONAI's joint transforms)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from monai.data.meta_obj import get_track_meta, set_track_meta
from monai.transforms import (
    Compose,
    Rand2DElasticd,
    RandAffined,
    RandAxisFlipd,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
)

from action.config import AugmentationConfig
from action.data.slices import Slices

# Nearest for the label, whose values are names, and for the confidence, so that a pixel keeps its own and pixels that
# come from outside the slice (confidence 0) are not blended in.
INTERPOLATION = {"image": "bilinear", "label": "nearest", "confidence": "nearest"}
KEYS = tuple(INTERPOLATION)
MODES = tuple(INTERPOLATION.values())


class Augmentation:
    """Weak (geometry), strong (intensity and deformation) and intensity-only transforms of slices.

    Each takes a batch of slices and the generator of its draws, which differ from slice to slice, and returns new
    tensors on the batch's device: the input is not modified, so the weak and the strong view never share memory.
    """

    def __init__(self, config: AugmentationConfig, size: Sequence[int]) -> None:
        low, high = config.brightness
        factors = (low - 1.0, high - 1.0)  # MONAI multiplies by 1 + factor
        p = config.intensity_probability
        geometry = [
            RandAxisFlipd(KEYS, prob=config.flip, allow_missing_keys=True),
            RandAffined(
                KEYS,
                prob=1.0,
                rotate_range=float(np.deg2rad(config.rotation)),
                scale_range=config.zoom,
                mode=MODES,
                padding_mode="zeros",
                allow_missing_keys=True,
            ),
        ]
        intensity = [
            RandScaleIntensityd("image", factors=factors, prob=p),
            RandScaleIntensityFixedMeand("image", factors=factors, prob=p),
            RandGaussianSmoothd("image", sigma_x=config.blur, sigma_y=config.blur, prob=p),
        ]
        deformation = [
            Rand2DElasticd(
                KEYS,
                spacing=(min(size) // 4,) * 2,
                magnitude_range=(0.0, config.deformation),
                prob=config.deformation_probability,
                mode=MODES,
                padding_mode="zeros",
                allow_missing_keys=True,
            )
        ]
        self._weak = Compose(geometry)
        self._intensity = Compose(intensity)
        self._strong = Compose([*intensity, *deformation])

    def weak(self, batch: Slices, rng: np.random.Generator) -> Slices:
        """Flip, rotation and zoom, of everything together."""
        return _apply(self._weak, batch, rng)

    def intensity(self, batch: Slices, rng: np.random.Generator) -> Slices:
        """Brightness, contrast and blur; nothing moves."""
        return _apply(self._intensity, batch, rng)

    def strong(self, batch: Slices, rng: np.random.Generator) -> Slices:
        """Brightness, contrast and blur of the image, and one smooth deformation of everything together."""
        return _apply(self._strong, batch, rng)


def _apply(transform: Compose, batch: Slices, rng: np.random.Generator) -> Slices:
    transform.set_random_state(seed=int(rng.integers(2**32)))
    count = len(next(iter(batch.values())))
    with _without_geometry():
        items = [transform({key: value[i].clone() for key, value in batch.items()}) for i in range(count)]
    return {key: torch.stack([item[key] for item in items]) for key in batch}


@contextmanager
def _without_geometry() -> Iterator[None]:
    """Slices carry no geometry, and MONAI's tracking of it, a global switch, costs more than the transforms."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)
