"""Where kernels run: the tensor's own device and its current stream, or Triton's interpreter on the CPU.

The interpreter (``TRITON_INTERPRET=1`` before Triton is imported) is for tests: it runs the same kernels in NumPy.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import triton
from torch import Tensor

from ..gpu import tf32_allowed

INTERPRETED: bool = triton.knobs.runtime.interpret

LOG2E = math.log2(math.e)  # exponentials are taken to the base 2


@dataclass(frozen=True)
class Target:
    """A GPU that need not be here, in place of the one that tensors are on.

    Args:
        capability: compute capability: 90 for 9.0.
        processors: multiprocessors.
        precision: of float32 products, ``tf32`` or ``ieee``.
        launch: called in place of every launch, as ``launch(kernel, grid, *arguments, **options)``.
    """

    capability: int
    processors: int
    precision: str
    launch: Callable[..., None]


_target: ContextVar[Target | None] = ContextVar("action_kernels_triton_target", default=None)


@contextmanager
def aimed_at(target: Target) -> Iterator[None]:
    """Inside the ``with`` block the backend decides as it would on ``target``, and gives it the launches."""
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)


class kernel:
    """Decorator of a Triton kernel that is launched from Python, as ``kernel[grid](...)``."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._jitted = triton.jit(function)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        target = _target.get()
        return self._jitted[grid] if target is None else partial(target.launch, self._jitted, grid)


_one_at_a_time = threading.RLock()  # the interpreter patches triton.language while a kernel runs


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Launches inside the ``with`` block go to the device of ``x``."""
    if INTERPRETED:
        return _one_at_a_time
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()  # tensors without data: compiling, not running


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU. The interpreter pretends to have a few, so that work is split there too."""
    target = _target.get()
    return target.processors if target else _processors(device)


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def capability(device: torch.device) -> int:
    """Compute capability of a GPU: 90 for 9.0."""
    target = _target.get()
    return target.capability if target else _capability(device)


@cache
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)
    return 10 * major + minor


def float32_precision() -> str:
    """How float32 products are taken, by PyTorch's own setting for CUDA matrix products."""
    if target := _target.get():
        return target.precision
    return "tf32" if tf32_allowed() else "ieee"


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << (n - 1).bit_length()
