"""dtypes that the operators take, and the one that they compute in."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """dtype of losses, similarities and kernel gradients: float32, or float64 if any input is."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
