"""The specification in plain PyTorch: every formula spelled out, every similarity stored, any device and dtype.

A file per operator; :mod:`~action_kernels.backends.interface` says what its functions take and give.
"""

from __future__ import annotations

import torch


def unavailable() -> str | None:
    """It always runs."""
    return None


def supports(device_type: str, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """It takes everything."""
    return None
