"""The launchers of ``csrc/cpu``, and what their callers allocate and pass beside the tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import native

_CPU = torch.device("cpu")


def bind(name: str, params: type[NamedTuple]) -> Callable[[NamedTuple], None]:
    """A launcher of the native module, a function of ``params``.

    Raises:
        ImportError: there is no native module, or it declares other parameters.
    """
    module = native.module()
    if isinstance(module, str):
        raise ImportError(module)
    return native.bind(module.cpu_launchers(), name, params)


def empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """New memory for a result."""
    # Sizes one by one and a device that needs no parsing: PyTorch reads these in 1.5 us, not 2.5.
    return torch.empty(*shape, dtype=dtype, device=_CPU)
