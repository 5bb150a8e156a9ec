"""What ACTION++ (You et al., MICCAI 2023) adds to the anatomical contrast: a moving temperature, and class anchors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from action.errors import InputError


def cosine_temperature(step: int, iterations: int, low: float, high: float) -> float:
    """low + (high - low) (1 + cos(2 pi t / T)) / 2: from high to low and back."""
    return low + 0.5 * (high - low) * (1 + math.cos(2 * math.pi * step / iterations))


def spread_anchors(classes: int, dim: int) -> Tensor:
    """Unit vectors [classes, dim] as far apart as can be, a simplex: every pair has the cosine -1 / (classes - 1).

    Raises:
        InputError: too few features for so many classes.
    """
    if dim < classes - 1:
        raise InputError(
            f"model.embedding is {dim}: anatomical_contrast.variant 'action++' spreads {classes} classes evenly, which "
            f"takes {classes - 1} features or more"
        )
    # Row k of a Helmert matrix weighs the first k classes alike against the next one: an orthonormal basis of the
    # directions in which classes differ.
    basis = torch.zeros(classes, dim, dtype=torch.float64)
    for k in range(1, classes):
        basis[:k, k - 1], basis[k, k - 1] = 1.0, -k
        basis[:, k - 1] /= math.sqrt(k * (k + 1))
    return F.normalize(basis, dim=1).float()


def nearest_anchors(means: Tensor, anchors: Tensor) -> Tensor:
    """Which anchor each class has [C] so that the sum of cosines is largest (Hungarian matching).

    The host reads C x C numbers back. A class that is absent takes what the others leave.

    Args:
        means: unit means of the classes [C, dim]; zero for an absent class.
        anchors: [C, dim].
    """
    cosines = (means.double() @ anchors.double().T).cpu().numpy()
    _, chosen = linear_sum_assignment(cosines, maximize=True)
    return torch.from_numpy(chosen).to(means.device)
