"""A query's limit from its group maxima: :mod:`..thresholds` has the reason, and the error bound."""

from __future__ import annotations

import triton
import triton.language as tl

from ..thresholds import LARGEST_K, LARGEST_PRODUCT, LOWEST_LIMIT, UNDERFLOW
from .selection import LOWEST

_LARGEST_PRODUCT = tl.constexpr(LARGEST_PRODUCT)
_UNDERFLOW = tl.constexpr(UNDERFLOW)
_LOWEST_LIMIT = tl.constexpr(LOWEST_LIMIT)


def groups_of_tile(k: int, rows: int, block_m: int) -> int:
    """Into how many groups the pass divides a tile of the bank; 0 where the threshold is not worth while.

    With fewer than 8 rows to choose each of the k from, group maxima would be nearly all of the similarities; and a
    walk over so few rows is short.
    """
    if not 0 < k <= min(LARGEST_K, rows // 8):
        return 0
    tiles, groups = -(-rows // block_m), 1
    while tiles * groups < 4 * k and groups < block_m // 2:
        groups = max(4, 2 * groups)
    return groups if tiles * groups >= 2 * k else 0


@triton.jit
def find_limits(
    block,
    maxima,
    scale,
    largest,
    bank_largest,
    labels,
    limits,
    flags,
    queries,
    bank_blocks,
    features,
    total,
    line,
    k,
    enough,
    error,
    BLOCK_Q: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A block of queries: what their products have to reach, and which of them are flagged."""
    row = block.to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inside = row < total
    # Groups that share a column are one group from here on.
    best = tl.full((BLOCK_Q, COLUMNS), LOWEST, tl.float32)
    for first in range(0, line, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        there = inside[:, None] & (column < line)[None, :]
        found = tl.load(maxima + row[:, None] * line + column[None, :], mask=there, other=LOWEST)
        best = tl.maximum(best, tl.where(found == found, found, LOWEST))
    bits = best.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    low, high = tl.min(ordered, 1), tl.max(ordered, 1) + 1  # `reach` groups, at least k, are not below `low`
    reach = tl.full((BLOCK_Q,), COLUMNS, tl.int32)
    searching = (reach > enough) & (low + 1 < high)
    while tl.max(searching.to(tl.int32), 0) > 0:
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        above = tl.sum((ordered >= middle[:, None]).to(tl.int32), 1)
        low, reach = tl.where(searching & (above >= k), middle, low), tl.where(searching & (above >= k), above, reach)
        high = tl.where(searching & (above < k), middle, high)
        searching = (reach > enough) & (low + 1 < high)
    threshold = (low ^ ((low >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)

    # No product with a unit bank row is longer than this; for rows that are not normalised, with any bank row. Their
    # squares, which a length would take, may leave float32's range where products do not.
    if largest is not None:
        own = tl.load(largest + row, mask=inside, other=0.0)
        blocks = bank_largest + (row // queries * bank_blocks)[:, None]
        longest = tl.zeros((BLOCK_Q, COLUMNS), tl.float32)
        for first in range(0, bank_blocks, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            there = inside[:, None] & (column < bank_blocks)[None, :]
            longest = tl.maximum(longest, tl.load(blocks + column[None, :], mask=there, other=0.0))
        reached = own * tl.max(longest, 1) * features
        reached = tl.where((own == own) & (reached != reached), float("inf"), reached)  # zero times infinity
    else:
        reached = 1.0 / tl.load(scale + row, mask=inside, other=1.0)
    limit = tl.maximum(threshold - 2.0 * (error * reached + _UNDERFLOW), _LOWEST_LIMIT)
    flagged = reached >= _LARGEST_PRODUCT
    if labels is not None:
        label = tl.load(labels + row, mask=inside, other=0.0)
        flagged = flagged | (label != label)
    # Nothing is selected for a query with NaN.
    tl.store(limits + row, tl.where(flagged | (reached != reached), float("inf"), limit), mask=inside)
    tl.store(flags + row, flagged.to(tl.int32), mask=inside)
