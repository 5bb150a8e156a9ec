"""How the C library's allocator deals with the memory of a training step."""

from __future__ import annotations

import ctypes
import platform

# Of malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one.

    By default it gives large blocks back to the system and asks for them anew, zeroed page by page: a tenth of a
    training step on a CPU. The process then stays as large as it was at its largest. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
