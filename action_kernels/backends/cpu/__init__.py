"""The native CPU backend: tensors in, down to ``csrc/cpu``, tensors out.

Every allocation names its dtype and device, and the native side checks each tensor's dtype, shape and layout before it
reads or writes: a tensor that does not fit is a ValueError that names it.

Runs on ``torch.get_num_threads()`` threads (on one where it was built without OpenMP) and on one instruction
set of :func:`variants`, the best that the processor has. Working memory besides inputs and outputs stays within
:func:`scratch_limit` (at least a few rows per thread) and one float per bank row (two per query in the bank gradient).
"""

from __future__ import annotations

import os

import torch

from .. import native
from ..interface import unsupported

_scratch_limit = int(os.environ.get("ACTION_KERNELS_SCRATCH_MIB", "32")) << 20


def unavailable() -> str | None:
    """Why this backend cannot run here, or None."""
    module = native.module()
    return module if isinstance(module, str) else None


def supports(device_type: str, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Why this backend does not take these tensors, or None."""
    return unsupported("cpu", device_type, dtypes)


def scratch_limit() -> int:
    """Bytes of scratch that one call may hold, all threads together."""
    return _scratch_limit


def set_scratch_limit(bytes: int) -> None:
    """Bound one call's scratch (default 32 MiB, or ``ACTION_KERNELS_SCRATCH_MIB``); smaller is slower, never wrong.

    Raises:
        ValueError: ``bytes`` is negative.
    """
    if bytes < 0:
        raise ValueError(f"bytes must not be negative, got {bytes}")
    global _scratch_limit
    _scratch_limit = bytes


def variants() -> list[str]:
    """Instruction sets that the native module has code for and this processor runs, best first."""
    module = native.module()
    return [] if isinstance(module, str) else list(module.variants())


def variant() -> str | None:
    """The instruction set in use."""
    module = native.module()
    return None if isinstance(module, str) else str(module.variant())


def has_threads() -> bool:
    """Whether the native module was built with OpenMP; without, every call runs on one thread."""
    module = native.module()
    return not isinstance(module, str) and bool(module.openmp)


def use_variant(name: str) -> None:
    """Run on another of :func:`variants`, in the whole process.

    Raises:
        ValueError: ``name`` is none of them.
    """
    module = native.module()
    if isinstance(module, str):
        raise ValueError(f"variant {name!r} does not run here: {module}")
    module.use_variant(name)
