"""Verdicts on the rows of a bank, packed: which of them may be among a query's k best.

The verdicts of a tile on a query fill four words, one for the columns that each lane of a quad holds in a tensor core's
result. Words that are not empty are appended to the query's line, in the part of it that the split of the bank has. A
line that is too short is noticed afterwards, by its counts.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .labels import of_another_class
from .products import load_vector
from .selection import LOWEST


class Words(NamedTuple):
    """Lines of words."""

    words: Tensor  # [G, N, line] int64: up to 32 verdicts above the number of the word, from 0 at the bank's first row
    counts: Tensor  # [num_splits, G, N] int32 words that a split had for a query, stored or not
    line: int
    capacity: int  # of a split
    num_splits: int
    block_m: int


@triton.jit
def load_limits(limits, first, queries, BLOCK_N: tl.constexpr):
    """The limits of a block of queries; none reaches that of a query that does not exist."""
    i = tl.arange(0, BLOCK_N)
    return tl.load(limits + first + i, mask=i < queries - first, other=float("inf"))


@triton.jit
def append_verdicts(
    words,
    line,
    count,
    capacity,
    x,
    limit,
    labels,
    own_label,
    start,
    end,
    LABELLED: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Append the words of a tile of products [BLOCK_N, BLOCK_M] to the lines of `words`; returns the new counts."""
    if MASKED:
        x = tl.where((start + tl.arange(0, BLOCK_M) < end)[None, :], x, LOWEST)
    if LABELLED:
        label = load_vector(labels, start, end, BLOCK_M, MASKED)[None, :]
        x = tl.where(of_another_class(label, own_label[:, None]), x, LOWEST)
    # Columns as (eighth of the tile, lane, one of two): numbers are brought into this shape, not truth values.
    better = tl.reshape(x, (BLOCK_N, BLOCK_M // 8, 4, 2)) >= limit[:, None, None, None]
    bit = tl.arange(0, BLOCK_M // 8)[:, None, None] * 2 + tl.arange(0, 2)[None, None, :]
    bits = tl.where(better, (1 << bit)[None, :, :, :], 0)
    bits = tl.sum(tl.sum(bits, 3), 1)
    some = (bits != 0).to(tl.int32)
    slot = count[:, None] + tl.cumsum(some, 1) - some
    number = start // BLOCK_M * 4 + tl.arange(0, 4)
    word = (bits.to(tl.int64) << 32) | number[None, :].to(tl.int64)
    tl.store(words + (tl.arange(0, BLOCK_N) * line)[:, None] + slot, word, mask=(some > 0) & (slot < capacity))
    return count + tl.sum(some, 1)


@triton.jit
def place_in_word(word, bit, BLOCK_M: tl.constexpr):
    """Where in the bank the row is kept that a bit of a word speaks of."""
    number = word & 0xFFFFFFFF
    return number // 4 * BLOCK_M + bit // 2 * 8 + number % 4 * 2 + bit % 2
