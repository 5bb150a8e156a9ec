"""Between what callers pass and what kernels take: the group dimension, empty inputs, reductions."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dtypes import working_dtype
from .temperature import Temperature


def grouped(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x if x.dim() == 3 else x.unsqueeze(0) for x in tensors)


def grouped_labels(labels: Tensor | None) -> Tensor | None:
    if labels is None:
        return None
    labels = labels.long()
    return labels if labels.dim() == 2 else labels.unsqueeze(0)


def ungrouped(x: Tensor, dim: int) -> Tensor:
    """Without the group dimension again if the inputs ``[(G,) N, D]`` came without (``dim`` = 2)."""
    return x.squeeze(0) if dim == 2 else x


def banked(bank: Tensor) -> bool:
    return bank.numel() > 0


def zero(query: Tensor, *others: Tensor, temp: Temperature = 1.0) -> Tensor:
    """A zero for every query that hangs on the graph of all inputs, whatever their values."""
    dtype = working_dtype(query, *others)
    zero = query[..., :0].sum(-1, dtype=dtype)
    for x in others:
        zero = zero + x[..., :0].sum(dtype=dtype)
    return zero + temp.reshape(1)[:0].sum(dtype=dtype) if isinstance(temp, Tensor) else zero


def nothing(query: Tensor, k: int) -> Tensor:
    return torch.full((*query.shape[:-1], k), -1, dtype=torch.int64, device=query.device)


def reduce(rows: Tensor, reduction: str, dim: int) -> Tensor:
    if reduction == "none":
        return rows.squeeze(0) if dim == 2 and rows.dim() == 2 else rows
    if reduction == "mean" and rows.numel() > 0:
        return rows.mean()
    return rows.sum()


def like(x: Tensor, dtype: torch.dtype, wanted: bool = True) -> Tensor:
    """A new tensor of the shape of ``x``, or [0] for a gradient that is not wanted."""
    return x.new_empty(x.shape if wanted else 0, dtype=dtype)
