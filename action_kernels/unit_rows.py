"""Rows at unit length in plain PyTorch, as every kernel takes them."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_NORM = 1e-12  # shorter rows count as this long


def norm(x: Tensor) -> Tensor:
    """Lengths [..., 1] of the rows of ``x``, at least :data:`SMALLEST_NORM`, in its dtype."""
    # In float64: the squares of huge elements overflow float32.
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
    return length.to(x.dtype).clamp_min(SMALLEST_NORM)


def unit(x: Tensor, normalize: bool, dtype: torch.dtype) -> Tensor:
    """Rows of ``dtype`` as they enter the products: ``x`` itself or x / max(|x|, 1e-12)."""
    x = x.to(dtype)
    return x / norm(x) if normalize else x
