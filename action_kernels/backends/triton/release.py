"""Which release of Triton the kernels need."""

from __future__ import annotations

import re

NEEDED = (3, 4)  # the first with `triton.knobs`


def problem() -> str | None:
    """What is wrong with the installed Triton, or None."""
    needs = f"needs Triton {'.'.join(map(str, NEEDED))} or later (PyTorch 2.8 and later bring it on Linux)"
    try:
        import triton
    except ImportError as error:
        return f"{needs}, found none ({error}): install a newer torch, or use the backend 'cuda' or 'reference'"
    found = str(getattr(triton, "__version__", "unknown"))
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers is None or tuple(map(int, numbers.groups())) < NEEDED:
        return f"{needs}, found {found}: install a newer torch, or use the backend 'cuda' or 'reference'"
    return None
