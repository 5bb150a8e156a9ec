"""Where kernels run: the tensor's own device and its current stream, or Triton's interpreter on the CPU.

The interpreter (``TRITON_INTERPRET=1`` before Triton is imported) is for tests: it runs the same kernels in NumPy.
"""

from __future__ import annotations

import math
import threading
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
import triton
from torch import Tensor

INTERPRETED: bool = triton.knobs.runtime.interpret

LOG2E = math.log2(math.e)  # exponentials are taken to the base 2

_one_at_a_time = threading.RLock()  # the interpreter patches triton.language while a kernel runs


def on_device(x: Tensor) -> AbstractContextManager:
    """Launches inside the ``with`` block go to the device of ``x``."""
    if INTERPRETED:
        return _one_at_a_time
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()  # tensors without data: compiling, not running


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU. The interpreter pretends to have a few, so that work is split there too."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@cache
def capability(device: torch.device) -> int:
    """Compute capability of a GPU: 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)
    return 10 * major + minor


def shares(device: torch.device, programs: int, length: int, block: int) -> tuple[int, int]:
    """(number of shares, elements in each) of a loop over ``length`` in blocks, so that two programs per processor run.

    A share has two blocks or more, where there are so many; none is empty.
    """
    wanted = max(1, min(2 * processors(device) // programs, length // (2 * block)))
    span = -(-length // (wanted * block)) * block
    return -(-length // span), span


def float32_precision() -> str:
    """How float32 products are taken, by PyTorch's own setting for CUDA matrix products."""
    matmul = torch.backends.cuda.matmul
    try:
        tf32 = matmul.fp32_precision == "tf32"
    except AttributeError:  # before PyTorch 2.9
        tf32 = matmul.allow_tf32
    return "tf32" if tf32 else "ieee"


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << (n - 1).bit_length()
