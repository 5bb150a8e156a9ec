"""How a bank is divided among blocks: decided by sizes alone, without the kernels' library."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..gpu import splits
from ..thresholds import LARGEST_K

TILE = 64  # rows of a tile, on either side
TERMS = 12  # floats per query from which a gradient takes its probabilities

_BUFFER_BYTES = 256 << 20


def tiles(rows: int) -> int:
    return -(-rows // TILE)


def sharers(dtype: torch.dtype, tf32: bool) -> int:
    """Lanes that share a query's products with a tile: each has a group of the bank of its own."""
    return 8 if dtype == torch.float32 and not tf32 else 4


def tiles_of_group(processors: int, blocks: int, rows: int, k: int, lanes: int) -> int:
    """Over how many tiles in succession a group of bank rows goes; 0 where limits are not worth while.

    4k groups are plenty, fewer than 2k say too little. Splits of the bank must not be fewer for the sake of groups.

    Args:
        processors: multiprocessors of the GPU.
        blocks: tiles of queries.
        rows: of the bank.
        k: rows to select.
        lanes: that share a query's products with a tile.
    """
    whole = rows // TILE
    if not 0 < k <= LARGEST_K or lanes * whole < 2 * k:
        return 0
    wanted, size = max(1, 2 * processors // blocks), 1
    while lanes * (whole // (2 * size)) >= 4 * k and whole >= 4 * size * wanted:
        size *= 2
    return size


class Plan(NamedTuple):
    """How a bank is walked through."""

    works: int  # walks of a block through a split of the bank
    num_splits: int
    span: int  # bank rows of a split
    running: int  # blocks that share the walks
    kept: int  # candidates of a split
    limit: int  # of what a clearing may leave in a buffer
    capacity: int  # of a buffer, per query
    quota: int  # this many candidates of every split are enough for the selection

    @property
    def keys(self) -> int:
        """Of a query."""
        return self.num_splits * self.kept


def plan(processors: int, groups: int, queries: int, rows: int, k: int) -> Plan:
    """The selection of k of ``rows`` rows by a buffer, on a GPU of so many multiprocessors."""
    blocks = groups * tiles(queries)
    num_splits, span = splits(processors, blocks, rows, TILE)
    works = blocks * num_splits
    kept = min(k, span)
    room = max(kept, 2 * TILE)  # for new candidates
    capacity, limit = kept + room + TILE, kept + room // 4
    running = min(works, 4 * processors, max(1, _BUFFER_BYTES // (8 * TILE * capacity)))
    return Plan(works, num_splits, span, running, kept, limit, capacity, -(-k // num_splits))
