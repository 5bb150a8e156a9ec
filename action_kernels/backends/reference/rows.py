"""The gradient through unit length, and rows that must not spread a NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from ...unit_rows import SMALLEST_NORM, norm


def raw_gradient(grad: Tensor, x: Tensor, normalize: bool) -> Tensor:
    """Gradient in the raw rows ``x`` from that in their unit rows u: (g - u <u, g>) / |x|."""
    if not normalize:
        return grad
    x = x.to(grad.dtype)
    length = norm(x)
    unit = x / length
    radial = unit * (unit * grad).sum(-1, keepdim=True)
    return (grad - torch.where(length > SMALLEST_NORM, radial, 0.0)) / length  # a clamped norm is a constant


def without_nan(rows: Tensor) -> Tensor:
    """Rows with a NaN as zero. A NaN row that contributes has a NaN weight already; elsewhere 0 * NaN would spread."""
    return rows.masked_fill(rows.isnan().any(-1, keepdim=True), 0.0)
