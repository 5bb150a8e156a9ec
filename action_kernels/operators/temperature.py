"""Temperatures: what may be one, and how one that is no constant takes part in the gradient and in compiled graphs.

A constant (a Python number) goes to the kernels as it is. A tensor, and a number that ``torch.compile`` has found to
change from call to call, is divided into unit rows before them: with r = query / temp the losses depend on r alone, so
autograd gives the temperature its gradient, nothing waits for a GPU, and no graph is specialised to one value.
"""

from __future__ import annotations

import numbers

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..dtypes import FLOATING
from . import transforms
from .arguments import check_tensor

Temperature = float | Tensor

SMALLEST, LARGEST = 2.0**-126, 2.0**126  # beyond them the reciprocal is no normal float32


def checked(name: str, value: Temperature, rows: Tensor, learnable: bool = True) -> Temperature:
    """``value`` if it can be a temperature for ``rows``. The value of a tensor is read only where nothing waits for it.

    Raises:
        ValueError: it is no number or tensor of one element, not positive, on a foreign device, or requires grad where
            it is not ``learnable``.
    """
    if isinstance(value, Tensor):
        _check_tensor(name, value, rows, learnable)
        return value
    if type(value) is not float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError(f"{name} must be a number or a floating tensor of one element, got {value!r}")
        value = float(value)
    _check_number(name, value)
    return value


def _check_number(name: str, value: float) -> None:
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    if not SMALLEST <= value <= LARGEST:
        raise ValueError(
            f"{name} must lie in {SMALLEST:.3g} <= {name} <= {LARGEST:.3g}, what float32 can divide by, got {value}"
        )


def _check_tensor(name: str, value: Tensor, rows: Tensor, learnable: bool) -> None:
    check_tensor(name, value)
    if value.numel() != 1 or value.dtype not in FLOATING:
        raise ValueError(
            f"{name} must be a number or a floating tensor of one element, "
            f"got a tensor of shape {tuple(value.shape)} and {value.dtype}"
        )
    if value.device.type != "cpu" and value.device != rows.device:
        raise ValueError(
            f"{name} must be on the rows' device {rows.device} or on the CPU, got a tensor on {value.device}"
        )
    if value.requires_grad and not learnable:
        raise ValueError(f"{name} must not require grad, the teacher is a constant: pass {name}.detach()")
    if _readable(value):
        _check_number(name, float(value.detach()))


def _readable(value: Tensor) -> bool:
    """Can the value be read at once: no GPU to wait for, and nobody tracing or transforming?"""
    return (
        value.device.type == "cpu"
        and type(value) in (Tensor, nn.Parameter)
        and not torch.compiler.is_compiling()
        and not transforms.active()
        and _get_current_dispatch_mode() is None
    )


def varies(value: Temperature) -> bool:
    """Is it a tensor, or a number that differs from call to call of a compiled function?"""
    if isinstance(value, Tensor):
        return True
    return torch.compiler.is_compiling() and not _static(value)


def _static(value: float) -> bool:
    """Is a number that is being traced a constant of the graph?"""
    from torch.fx.experimental import symbolic_shapes  # slow to import; already imported where something is traced

    if hasattr(symbolic_shapes, "has_static_value"):
        return symbolic_shapes.has_static_value(value)
    return True  # before PyTorch 2.7 a graph belongs to its numbers


def scalar(value: Temperature, dtype: torch.dtype) -> Temperature:
    """The divisor of rows of ``dtype``; NaN for a tensor's value that :func:`checked` refuses where it can read it."""
    if not isinstance(value, Tensor):
        return value
    value = value.reshape(()).to(dtype)
    return torch.where((value >= SMALLEST) & (value <= LARGEST), value, torch.nan)


def absorbed(rows: Tensor, temp: Temperature, dtype: torch.dtype) -> tuple[Tensor, Temperature, Temperature]:
    """Unit rows divided by a varying ``temp``, the temperature that is left to the kernel, and the divisor."""
    if not varies(temp):
        return rows, temp, 1.0
    divisor = scalar(temp, dtype)
    return rows / divisor, 1.0, divisor
