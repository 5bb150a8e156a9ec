"""Where the rows of a bank are kept by a :class:`~..thresholds.Placement`, for kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place_of(row, tiles, block):
    """Where a bank row is kept."""
    return tl.where(row < tiles * block, row % tiles * block + row // tiles, row)


@triton.jit
def row_at(place, tiles, block):
    """Which bank row is kept in a place."""
    return tl.where(place < tiles * block, place % block * tiles + place // block, place)
