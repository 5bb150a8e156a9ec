"""Mixing of slices for the strong view: image, label and confidence are always mixed together.

A way of mixing is a function in ``MIXES``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from action.data.slices import Slices


def mix(batch: Slices, partner: Slices, how: str, rng: np.random.Generator) -> Slices:
    """Paste a part of each slice's partner into it; new tensors, the inputs are not modified.

    Args:
        batch: values [B, channels, H, W].
        partner: values [B, channels, H, W] under the same keys; "label" decides for ClassMix.
        how: a name in ``MIXES``.
        rng: draws what is pasted.
    """
    return paste(batch, partner, MIXES[how](partner["label"], rng))


def paste(batch: Slices, partner: Slices, pasted: Tensor) -> Slices:
    """New tensors with the partner's values at the pixels that are pasted, bool [B, 1, H, W]."""
    return {key: torch.where(pasted, partner[key], value) for key, value in batch.items()}


def paste_both_ways(first: Slices, second: Slices, side: float, rng: np.random.Generator) -> Slices:
    """Boxes of the second slices in the first ones, then of the first in the second: 2 N slices for N second ones.

    Args:
        first: taken in turn; a second slice has another partner each way.
        second: N slices with the same keys.
        side: of a box, as a share of the height and of the width.
        rng: places the boxes.
    """
    turn = torch.arange(len(second["image"]) + 1, device=second["image"].device) % len(first["image"])
    inside, outside = ({key: x[places] for key, x in first.items()} for places in (turn[:-1], turn[1:]))
    box = boxes(second["label"], side, rng)
    ways = paste(inside, second, box), paste(second, outside, box)
    return {key: torch.cat([way[key] for way in ways]) for key in second}


def boxes(like: Tensor, side: float, rng: np.random.Generator) -> Tensor:
    """A box of ``side`` times the height and the width, at a random place of each slice: bool as ``like`` [B, 1, H, W].

    ``like`` says how many, how large and on which device.
    """
    height, width = like.shape[-2:]
    extents = round(side * height), round(side * width)
    return torch.stack([_placed(height, width, *extents, rng) for _ in like])[:, None].to(like.device)


def nothing(label: Tensor, rng: np.random.Generator) -> Tensor:
    """No pixel."""
    return torch.zeros_like(label, dtype=torch.bool)


def cutmix(label: Tensor, rng: np.random.Generator) -> Tensor:
    """A random box of a quarter to a half of the area (CutMix; Yun et al., ICCV 2019)."""
    return torch.stack([_box(label.shape[-2:], rng) for _ in label])[:, None].to(label.device)


def classmix(label: Tensor, rng: np.random.Generator) -> Tensor:
    """The pixels of half of the classes that the partner's label shows (ClassMix; Olsson et al., WACV 2021)."""
    return torch.stack([_half_of_the_classes(one, rng) for one in label])


Mix = Callable[[Tensor, np.random.Generator], Tensor]
"""Takes the partners' labels [B, 1, H, W]; returns the pixels that are pasted, bool [B, 1, H, W]."""

MIXES: dict[str, Mix] = {"cutmix": cutmix, "classmix": classmix, "none": nothing}
"""The known mixes by the name that ``anatomical_contrast.mix`` takes."""


def _box(size: torch.Size, rng: np.random.Generator) -> Tensor:
    height, width = size
    area = rng.uniform(0.25, 0.5) * height * width
    box_height = int(min(height, max(1, round(np.sqrt(area * rng.uniform(0.5, 2.0))))))
    box_width = int(min(width, max(1, round(area / box_height))))
    return _placed(height, width, box_height, box_width, rng)


def _placed(height: int, width: int, box_height: int, box_width: int, rng: np.random.Generator) -> Tensor:
    top, left = int(rng.integers(height - box_height + 1)), int(rng.integers(width - box_width + 1))
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : top + box_height, left : left + box_width] = True
    return mask


def _half_of_the_classes(label: Tensor, rng: np.random.Generator) -> Tensor:
    classes = torch.unique(label)
    order = torch.from_numpy(rng.permutation(len(classes)))[: (len(classes) + 1) // 2].to(label.device)
    return torch.isin(label, classes[order])
