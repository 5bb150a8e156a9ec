"""The CUDA C++ backend: tensors in, down to ``csrc/cuda``, tensors out.

Works like the Triton backend: a pass over the bank that keeps similarities in registers, one more pass for either
gradient, and warps that read indexed rows in place. Float32 products follow PyTorch's setting for CUDA matrix
products: exact, or on tensor cores in tf32. Kernels run on the tensors' device and its current stream; nothing
synchronises with the host; the same input gives the same bits.

An operator is one native call, in either direction: results and one workspace, of the size that the launcher says, are
allocated here; what is launched, and what lies where in the workspace, is decided in C++. In ``csrc/cuda``:

    whole_bank          operators over a whole bank (forward.cu, backward.cu), whose steps passes.cuh declares
    sides               what all of them begin with, and a gradient's pass with its end
    prepare             preparing all rows
    bank_pass           the first pass over the bank: softmaxes, the divergence, the group maxima
    merge_and_limit     what is known after it, with a selection: the softmaxes, what a similarity has to reach
    gradient            the second pass: a gradient in the student, with verdicts, or in the whole bank
    verdicts            the second pass, where no gradient is wanted: which rows reach it
    finish_and_collect  what is known after it: the gradient in raw rows, a selection from verdicts, rounded once
    buffered            the selection that takes anything, for queries that limits do not serve
    order               putting into order what the buffer alone has selected
    indexed_rows        rows that an index names, and their gradient in the bank
    search, splits      how a selection is made and a walk is divided: decided by sizes alone
    call, workspace     the launches and the memory of a call

The workspace: a padded copy of student, teacher and bank in their own dtype (float16 for unit rows of bfloat16), a few
floats per query, and for the selection group maxima, then verdicts on some 2k rows per query, and a buffer per running
block (up to 256 MiB altogether, more only where a single block needs it).

``ACTION_CUDA_HOST`` names a library with the same kernels compiled for the CPU, for tests: CPU tensors then.
"""

from __future__ import annotations

import torch

from ..interface import unsupported
from . import library


def unavailable() -> str | None:
    """Why this backend cannot run here, or None."""
    if not library.HOST and not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    found = library.launchers()
    return found if isinstance(found, str) else None


def supports(device_type: str, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Why this backend does not take these tensors, or None."""
    return unsupported("cpu" if library.HOST else "cuda", device_type, dtypes)
