"""In which order the rows of a bank are kept, so that neighbours come into different tiles.

Rows that lie side by side in a bank are often alike: one image filled them, or they are sorted. Where a tile takes
every `tiles`-th row instead, the best rows of a query are spread over the tiles, and the best row of each tile says a
lot about which rows are the best of all. Preparing a bank copies it anyway.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class Placement(NamedTuple):
    """Rows 0 to ``tiles * block`` are dealt out to the tiles in turn; those behind stay where they are."""

    tiles: int
    block: int  # rows of a tile

    @classmethod
    def of(cls, rows: int, block: int) -> Placement:
        """For tiles of ``block`` rows."""
        return cls(max(1, rows // block), block)


AS_THEY_ARE = Placement(1, 1)


@triton.jit
def place_of(row, tiles, block):
    """Where a bank row is kept."""
    return tl.where(row < tiles * block, row % tiles * block + row // tiles, row)


@triton.jit
def row_at(place, tiles, block):
    """Which bank row is kept in a place."""
    return tl.where(place < tiles * block, place % block * tiles + place // block, place)
