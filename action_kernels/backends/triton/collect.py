"""From verdicts to keys: every row that may be among a query's k best gets its similarity, in one defined rounding.

Similarities are summed in float64 and rounded once, so that they depend neither on a tile nor on a GPU. What comes out
are keys, as the buffer of :mod:`.selection` has them: in the end the k largest of a line are the selection. A query of
which there are too many words or rows is flagged, and its line left empty.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gpu import EMPTY, selection_of
from ..thresholds import Placement
from .launch import INTERPRETED, kernel, on_device, power_of_two
from .placement import row_at
from .rows import Rows
from .selection import key_of, similarity_of
from .words import Words, place_in_word

# Keys of a line up to which a kernel puts them into order. The interpreter takes seconds for a few of them.
SORTED_IN_REGISTERS = 0 if INTERPRETED else 1024
SORTED = 1 << 20  # keys that PyTorch puts into order at a time: sorting takes several times their memory
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


@kernel
def _collect(
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
    q = tl.program_id(0).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
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


def collect(query: Rows, bank: Rows, placement: Placement, words: Words, flags: Tensor) -> Tensor:
    """Keys [G, N, line] in place of the words; sets ``flags`` [G, N] to 1 where some did not fit."""
    groups, queries, features = query.data.shape
    wide = power_of_two(words.num_splits * words.capacity)
    block_d = min(power_of_two(features), 128)
    block_q = min(power_of_two(queries), 64) if INTERPRETED else 1
    warps = 1 if wide < 1024 else 4
    with on_device(query.data):
        _collect[(-(-(groups * queries) // block_q),)](
            *query,
            *bank,
            words.words,
            words.counts,
            flags,
            groups * queries,
            queries,
            bank.data.shape[1],
            words.line,
            words.capacity,
            words.num_splits,
            *placement,
            BLOCK_M=words.block_m,
            FEATURES=features,
            BLOCK_Q=block_q,
            WORDS=wide,
            BLOCK_K=64 if INTERPRETED else max(8, 1024 * warps // block_d),
            BLOCK_D=block_d,
            num_warps=warps,
        )
    return words.words


@kernel
def _order(keys, similarity, index, lines, line, k, BLOCK_Q: tl.constexpr, KEYS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    slot = tl.arange(0, KEYS)
    there = (row < lines)[:, None] & (slot < line)[None, :]
    key = tl.sort(tl.load(keys + row[:, None] * line + slot[None, :], mask=there, other=_EMPTY), descending=True)
    place = row[:, None] * k + slot[None, :]
    wanted = (row < lines)[:, None] & (slot < k)[None, :]
    tl.store(similarity + place, tl.where(key == _EMPTY, float("-inf"), similarity_of(key)), mask=wanted)
    tl.store(index + place, tl.where(key == _EMPTY, -1, 0xFFFFFFFF - (key & 0xFFFFFFFF)), mask=wanted)


def in_order(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Similarities and rows, both [..., k], of the k best of ``keys`` [..., at least 1], in descending order."""
    shape, line = (*keys.shape[:-1], k), keys.shape[-1]
    similarity = torch.empty(shape, dtype=torch.float32, device=keys.device)
    index = torch.empty(shape, dtype=torch.int64, device=keys.device)
    wide = power_of_two(max(line, k))
    if wide > SORTED_IN_REGISTERS:
        parts = (x.flatten(0, -2).split(max(1, SORTED // line)) for x in (keys, similarity, index))
        for part in zip(*parts, strict=True):
            _write_in_order(*part)
        return similarity, index
    lines = keys.numel() // line
    block = max(1, (1 << 10) // wide)
    with on_device(keys):
        _order[(-(-lines // block),)](keys, similarity, index, lines, line, k, BLOCK_Q=block, KEYS=wide)
    return similarity, index


def _write_in_order(keys: Tensor, similarity: Tensor, index: Tensor) -> None:
    k = similarity.shape[-1]
    many = keys.shape[-1] > 2 * k
    keys = keys.topk(k, sorted=True).values if many else keys.sort(dim=-1, descending=True).values
    part_similarity, part_index = selection_of(keys, k)
    similarity.copy_(part_similarity)
    index.copy_(part_index)
