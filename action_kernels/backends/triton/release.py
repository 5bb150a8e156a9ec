"""Which release of Triton the kernels need."""

from __future__ import annotations

import os
import re

import torch

NO_DEVICE = "PyTorch finds no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, for tests)"
NEEDED = (3, 4)  # the first with `triton.knobs`


def problem() -> str | None:
    """What is wrong with the installed Triton, or None."""
    try:
        import triton
    except ImportError as error:
        found = f"none ({error})"
    else:
        found = str(getattr(triton, "__version__", "unknown"))
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers and tuple(map(int, numbers.groups())) >= NEEDED:
        return None
    if not (os.environ.get("TRITON_INTERPRET") or torch.cuda.is_available()):
        return NO_DEVICE  # and no release would change that
    needs = f"needs Triton {'.'.join(map(str, NEEDED))} or later (PyTorch 2.8 and later bring it on Linux)"
    return f"{needs}, found {found}: install a newer torch, or use the backend 'cuda' or 'reference'"
