"""Rows at unit length, and the gradient through it."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST_NORM = 1e-12


def rows(x: Tensor, normalize: bool, dtype: torch.dtype) -> Tensor:
    """The rows that enter the products: ``x`` itself or x / max(|x|, 1e-12)."""
    x = x.to(dtype)
    return x / norm(x) if normalize else x


def norm(x: Tensor) -> Tensor:
    # In float64: the squares of huge elements overflow float32.
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
    return length.to(x.dtype).clamp_min(_SMALLEST_NORM)


def raw_gradient(grad: Tensor, x: Tensor, normalize: bool) -> Tensor:
    """Gradient in the raw rows ``x`` from that in the rows of :func:`rows`: (g - u <u, g>) / |x|."""
    if not normalize:
        return grad
    x = x.to(grad.dtype)
    length = norm(x)
    unit = x / length
    radial = unit * (unit * grad).sum(-1, keepdim=True)
    return (grad - torch.where(length > _SMALLEST_NORM, radial, 0.0)) / length  # a clamped norm is a constant


def without_nan(rows: Tensor) -> Tensor:
    """Rows with a NaN as zero. A NaN row that contributes has a NaN weight already; elsewhere 0 * NaN would spread."""
    return rows.masked_fill(rows.isnan().any(-1, keepdim=True), 0.0)
