"""From verdicts to keys: every row that may be among a query's k best gets its similarity, in one defined rounding.

Similarities are summed in float64 and rounded once, so that they depend neither on a tile nor on a GPU. What comes out
are keys, as the buffer of :mod:`.selection` has them: in the end the k largest of a line are the selection. A query of
which there are too many words or rows is flagged, and its line left empty.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..gpu import EMPTY
from .placement import row_at
from .selection import key_of
from .words import place_in_word

_EMPTY = tl.constexpr(EMPTY)


@triton.jit
def _ones(bits):
    """How many of the lower 32 bits are set."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    return ((bits * 0x01010101) & 0xFFFFFFFF) >> 24


@triton.jit
def _place_of_bit(low):
    """Which bit it is that alone is set."""
    return (low.to(tl.float32).to(tl.int32, bitcast=True) >> 23).to(tl.int64) - 127


@triton.jit
def collect_block(
    block,
    query,
    query_scale,
    bank,
    bank_scale,
    words,
    counts,
    flags,
    total,
    queries,
    rows,
    line,
    capacity,
    num_splits,
    place_tiles,
    place_block,
    BLOCK_M: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A block of queries: keys in place of the words of verdicts, and flags where some did not fit."""
    q = block.to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    exists = q < total
    b_rows = q // queries * rows  # of the query's group
    keys = words + q * line
    slot = tl.arange(0, WORDS)
    split = slot // capacity
    counted = exists[:, None] & (split < num_splits)[None, :]
    count = tl.load(counts + split.to(tl.int64)[None, :] * total + q[:, None], mask=counted, other=0)
    word = tl.load(keys[:, None] + slot[None, :], mask=(slot % capacity)[None, :] < count, other=0)
    bits = (word >> 32) & 0xFFFFFFFF
    ones = _ones(bits)
    found = tl.sum(ones, 1).to(tl.int32)
    flag = tl.load(flags + q, mask=exists, other=0) != 0
    too_many = flag | (tl.max(count, 1) > capacity) | (found > line)
    tl.store(flags + q, 1, mask=exists & too_many)
    found = tl.where(too_many, 0, found)
    bits = tl.where(too_many[:, None], 0, bits)
    # The places of the rows take those of the words, all of which are in registers.
    tl.debug_barrier()
    target = tl.cumsum(ones, 1) - ones
    while tl.max(tl.max(bits, 1), 0) > 0:
        low = bits & -bits
        tl.store(keys[:, None] + target, place_in_word(word, _place_of_bit(low), BLOCK_M), mask=bits > 0)
        target += (bits > 0).to(tl.int64)
        bits = bits & (bits - 1)
    tl.debug_barrier()
    q_scale = tl.load(query_scale + q, mask=exists, other=0.0).to(tl.float64)
    for first in range(0, tl.max(found, 0), BLOCK_K):
        entry = first + tl.arange(0, BLOCK_K)
        there = entry[None, :] < found[:, None]
        place = tl.load(keys[:, None] + entry[None, :], mask=there, other=0)
        row = b_rows[:, None] + place
        product = tl.zeros((BLOCK_Q, BLOCK_K), tl.float64)
        for feature in range(0, FEATURES, BLOCK_D):
            column = feature + tl.arange(0, BLOCK_D)
            inside = column < FEATURES
            x_offset = q[:, None] * FEATURES + column[None, :]
            x = tl.load(query + x_offset, mask=exists[:, None] & inside[None, :], other=0.0)
            y_offset = row[:, :, None] * FEATURES + column[None, None, :]
            y = tl.load(bank + y_offset, mask=there[:, :, None] & inside[None, None, :], other=0.0)
            # 16 bits go to 64 by way of 32, which they fill exactly.
            x, y = x.to(tl.float32).to(tl.float64), y.to(tl.float32).to(tl.float64)
            product += tl.sum(x[:, None, :] * y, 2)
        b_scale = tl.load(bank_scale + row, mask=there, other=0.0).to(tl.float64)
        similarity = (product * (q_scale[:, None] * b_scale)).to(tl.float32)
        key = key_of(similarity, row_at(place, place_tiles, place_block))
        tl.debug_barrier()  # all threads have read the place that a key takes
        tl.store(keys[:, None] + entry[None, :], tl.where(similarity == similarity, key, _EMPTY), mask=there)
    for first in range(0, line, WORDS):
        rest = first + tl.arange(0, WORDS)
        behind = (rest[None, :] >= found[:, None]) & (rest < line)[None, :] & exists[:, None]
        tl.store(keys[:, None] + rest[None, :], tl.full((BLOCK_Q, WORDS), _EMPTY, tl.int64), mask=behind)
