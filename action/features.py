"""Features of pixels whose class is known: where the classes lie in what a network has learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from action.data.volumes import LoadedCase
from action.model.heads import Pixels
from action.model.network import Network


class Shown(NamedTuple):
    """Slices of the network's size."""

    image: Tensor  # [B, channels, H, W]
    label: Tensor  # [B, H, W] uint8


def quarter_slices(cases: Sequence[LoadedCase], size: tuple[int, int], device: torch.device) -> Shown | None:
    """The slices at a quarter, half and three quarters of each case's foreground, cropped or padded about their centre.

    ``None`` if no case has foreground. A case without any is left out.
    """
    from monai.transforms import ResizeWithPadOrCrop  # here, for it takes a second to load

    fit = ResizeWithPadOrCrop(size)
    images, labels = [], []
    for case in cases:
        if case.label is None:
            raise ValueError(f"{case.name} has no label, by which its pixels have no class")
        there = np.flatnonzero(np.asarray(case.label).any(axis=(1, 2)))
        if not len(there):
            continue
        for z in np.unique(np.quantile(there, (0.25, 0.5, 0.75)).round().astype(int)):
            images.append(np.asarray(fit(case.image[z].astype(np.float32))))
            labels.append(np.asarray(fit(case.label[z : z + 1]))[0])
    if not images:
        return None
    image, label = (torch.from_numpy(np.stack(parts)).to(device) for parts in (images, labels))
    return Shown(image, label)


def at_pixels(maps: Sequence[Tensor], pixels: Pixels, size: Sequence[int]) -> Tensor:
    """Rows [P, sum of widths] of all decoder maps of one slice at its pixels, coarse maps interpolated to ``size``."""
    joined = torch.cat([F.interpolate(x, tuple(size), mode="bilinear", align_corners=True) for x in maps], 1)
    return joined[0, :, pixels.y, pixels.x].T


@torch.no_grad()
def decoder_features(network: Network, shown: Shown, classes: int, count: int) -> tuple[Tensor, Tensor]:
    """Features [P, C] of ``count`` pixels of every class in every slice, the same at every call, and their classes.

    Args:
        network: in evaluation mode.
        shown: slices with labels.
        classes: number of classes.
        count: pixels of each in a slice; a class that a slice lacks is given pixels of all its classes.
    """
    from action.stages.anatomical_contrast import sample_pixels  # here, for stages load MONAI

    rows, found = [], []
    rng = np.random.default_rng(0)
    for image, label in zip(shown.image.split(1), shown.label.split(1), strict=True):
        pixels, drawn = sample_pixels(label.long(), classes, count, rng)
        rows.append(at_pixels(network(image).features, pixels, label.shape[1:]))
        found.append(drawn)
    return torch.cat(rows), torch.cat(found)


def variance_between(rows: Tensor, truth: Tensor, classes: int) -> float:
    """Share of the variance of rows [P, C] that lies between their classes [P], each of which counts alike.

    NaN where a class has no row.
    """
    centres = torch.stack([rows[truth == c].mean(0) for c in range(classes)])
    within = torch.stack([(rows[truth == c] - centres[c]).square().sum(1).mean() for c in range(classes)]).mean()
    between = (centres - centres.mean(0)).square().sum(1).mean()
    return float(between / (between + within))


class Plane(NamedTuple):
    """Rows seen from the side from which they differ most.

    Attributes:
        places: [P, 2] principal components of the rows.
        explained: share of the variance that each of both axes holds.
    """

    places: Tensor
    explained: tuple[float, float]


def principal_plane(rows: Tensor) -> Plane:
    """The first two principal components of rows [P, C], C at least 2.

    The sign of an axis is that in which its largest weight is positive: the same rows always give the same picture.
    """
    centred = rows - rows.mean(0)
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * axes[:2].gather(1, axes[:2].abs().argmax(1, keepdim=True)).sign()
    share = (sizes.square() / sizes.square().sum().clamp_min(1e-12))[:2].tolist()
    return Plane(centred @ axes.T, (share[0], share[1]))


def standardized(rows: Tensor) -> Tensor:
    """Rows [P, C] in float64 whose columns have mean 0 and deviation 1, or are 0 throughout."""
    rows = rows.double()
    return (rows - rows.mean(0)) / rows.std(0).clamp_min(1e-6)
