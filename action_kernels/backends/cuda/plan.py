"""How a bank is divided among blocks: decided by sizes alone, without the kernels' library."""

from __future__ import annotations

from typing import NamedTuple

from ..gpu import splits

TILE = 64  # rows of a tile, on either side

_BUFFER_BYTES = 256 << 20


def tiles(rows: int) -> int:
    return -(-rows // TILE)


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


def plan(processors: int, groups: int, queries: int, rows: int, k: int) -> Plan:
    """The pass that selects k of ``rows`` rows, on a GPU of so many multiprocessors."""
    blocks = groups * tiles(queries)
    num_splits, span = splits(processors, blocks, rows, TILE)
    works = running = blocks * num_splits
    kept, limit, capacity = min(k, span), 0, 0
    if k > 0:
        room = max(kept, 2 * TILE)  # for new candidates
        capacity, limit = kept + room + TILE, kept + room // 4
        affordable = max(1, _BUFFER_BYTES // (8 * TILE * capacity))
        running = min(works, 4 * processors, affordable)
    return Plan(works, num_splits, span, running, kept, limit, capacity, -(-k // num_splits))
