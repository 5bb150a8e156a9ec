"""Mixing of slices for the strong view: image, label and confidence are always mixed together."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from action.data.augment import Slices


def mix(batch: Slices, partner: Slices, how: Literal["cutmix", "classmix", "none"], rng: np.random.Generator) -> Slices:
    """Paste a part of each slice's partner into it; new tensors, the inputs are not modified.

    CutMix (Yun et al., ICCV 2019): a random box of a quarter to a half of the area. ClassMix (Olsson et al., WACV
    2021): the pixels of half of the classes that the partner's label shows.

    Args:
        batch: values [B, 1, H, W].
        partner: values [B, 1, H, W] under the same keys; "label" decides for ClassMix.
    """
    if how == "none":
        return {key: value.clone() for key, value in batch.items()}
    label = partner["label"]
    if how == "cutmix":
        pasted = torch.stack([_box(label.shape[-2:], rng) for _ in label])[:, None].to(label.device)
    else:
        pasted = torch.stack([_half_of_the_classes(one, rng) for one in label])
    return {key: torch.where(pasted, partner[key], value) for key, value in batch.items()}


def _box(size: torch.Size, rng: np.random.Generator) -> Tensor:
    height, width = size
    area = rng.uniform(0.25, 0.5) * height * width
    box_height = int(min(height, max(1, round(np.sqrt(area * rng.uniform(0.5, 2.0))))))
    box_width = int(min(width, max(1, round(area / box_height))))
    top, left = int(rng.integers(height - box_height + 1)), int(rng.integers(width - box_width + 1))
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : top + box_height, left : left + box_width] = True
    return mask


def _half_of_the_classes(label: Tensor, rng: np.random.Generator) -> Tensor:
    classes = label.unique()
    order = torch.from_numpy(rng.permutation(len(classes)))[: (len(classes) + 1) // 2].to(label.device)
    return torch.isin(label, classes[order])
