"""Losses that several stages share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.networks.utils import one_hot
from torch import Tensor

SMOOTH = 1e-5  # of Dice: keeps a class that is neither there nor predicted defined

# Half cross-entropy, half Dice over all classes and the whole batch, squared denominators.
segmentation_loss = DiceCELoss(
    to_onehot_y=True,
    softmax=True,
    squared_pred=True,
    smooth_nr=SMOOTH,
    smooth_dr=SMOOTH,
    batch=True,
    lambda_dice=0.5,
    lambda_ce=0.5,
)


def pseudo_label_loss(
    logits: Tensor,
    label: Tensor,
    confidence: Tensor,
    strong_threshold: float,
    threshold: float = 0.0,
    dice: bool = False,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy to pseudo-labels, weighted per image by the share of confident pixels; on request half Dice.

    eta_b = (pixels of image b with confidence >= strong_threshold) / (valid pixels of image b);
    loss = mean over all valid pixels of eta_b * CE, with ``dice`` (that + mean_b eta_b * (1 - mean_c D_c)) / 2, where
    D_c = 2 sum(m p y) / sum(m (p^2 + y^2)) over the batch, and m = eta_b at the valid pixels of image b.

    Args:
        logits: [B, C, H, W].
        label: [B, 1, H, W] class indices.
        confidence: [B, 1, H, W]; 0 marks pixels outside the image, which are not valid.
        strong_threshold: confidence above which a pixel counts as confident.
        threshold: confidence below which a pixel is not valid either.
        dice: whether half of the loss is Dice.

    Returns:
        The loss and the mean of eta_b. Without a valid pixel both are 0, and the loss still carries a graph.
    """
    valid = (confidence[:, 0] > 0) & (confidence[:, 0] >= threshold)
    weight = (confidence[:, 0] >= strong_threshold).sum(dim=(1, 2)) / valid.sum(dim=(1, 2)).clamp_min(1)
    mass = (weight[:, None, None] * valid)[:, None]
    loss = weighted_entropy(logits, label, mass) / valid.sum().clamp_min(1)
    if dice:
        loss = 0.5 * (loss + weight.mean() * weighted_dice_loss(logits, label, mass))
    return loss, weight.mean()


def masked_segmentation_loss(logits: Tensor, label: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
    """Half cross-entropy, half Dice as in ``segmentation_loss``, of the pixels of a mask alone.

    Args:
        logits: [B, C, H, W].
        label: [B, 1, H, W] class indices.
        mask: bool [B, 1, H, W]. Without a pixel in it the loss is 0 and still carries a graph.
        pixels: by how many the sum of the cross-entropy is divided.
    """
    entropy = weighted_entropy(logits, label, mask) / pixels.clamp_min(1)
    return 0.5 * (entropy + weighted_dice_loss(logits, label, mask))


def consistency_loss(logits: Tensor, label: Tensor, confidence: Tensor, threshold: float) -> Tensor:
    """Half cross-entropy, as a mean over all pixels of the images, half Dice, both of the sure pixels.

    Args:
        logits: [B, C, H, W].
        label: [B, 1, H, W] class indices.
        confidence: [B, 1, H, W]; 0 marks pixels outside the image.
        threshold: confidence from which on a pixel is sure.
    """
    inside = confidence > 0
    return masked_segmentation_loss(logits, label, inside & (confidence >= threshold), inside.sum())


def weighted_entropy(logits: Tensor, label: Tensor, mass: Tensor) -> Tensor:
    """Sum over pixels of mass * CE; logits [B, C, H, W], label and mass [B, 1, H, W]."""
    return (mass * F.cross_entropy(logits, label[:, 0].long(), reduction="none")[:, None]).sum()


def weighted_dice_loss(logits: Tensor, label: Tensor, mass: Tensor) -> Tensor:
    """1 - mean_c D_c, D_c = 2 sum(m p y) / sum(m (p^2 + y)) over the batch; shapes as in ``weighted_entropy``."""
    p = logits.softmax(dim=1)
    y = one_hot(label, logits.shape[1], p.dtype)
    overlap = 2 * (mass * p * y).sum(dim=(0, 2, 3)) + SMOOTH
    loss: Tensor = 1 - (overlap / ((mass * (p.square() + y)).sum(dim=(0, 2, 3)) + SMOOTH)).mean()
    return loss


def ramp_up(step: int, length: float) -> float:
    """Weight exp(-5 (1 - t/T)^2), which grows to 1 over ``length`` steps (Laine and Aila, ICLR 2017)."""
    return 1.0 if step >= length else math.exp(-5.0 * (1.0 - step / length) ** 2)


def zero_like(graph: Tensor) -> Tensor:
    """A zero that carries the graph of ``graph``, so that ``backward`` and mixed devices work."""
    return torch.zeros((), dtype=graph.dtype, device=graph.device) + graph.sum() * 0.0
