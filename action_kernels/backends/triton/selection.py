"""The k largest similarities of a row, exactly: an append buffer, cleared by bisection.

A candidate is one int64 key: the bits of its similarity, put into order, above its inverted row number. Keys are
unique, and the larger key is the better candidate: more similar, or equally similar and earlier in the bank. Candidates
better than the row's threshold are appended to a buffer in global memory; when it is full, bisection finds a key that
at least k and at most `limit` candidates reach, those stay, and that key's similarity is the new threshold. A tile
without such a candidate costs a comparison. The survivors are put into order at the end, by a sort of k keys a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..gpu import EMPTY
from .launch import INTERPRETED

LOWEST = tl.constexpr(-torch.finfo(torch.float32).max)  # similarities of bank rows that do not exist
_EMPTY = tl.constexpr(EMPTY)
_LARGEST = tl.constexpr(2**63 - 1)
_CHUNK = tl.constexpr(256 if INTERPRETED else 16)  # keys of a line that are read at a time


@triton.jit
def key_of(similarity, index):
    bits = tl.where(similarity == 0.0, 0.0, similarity).to(tl.int32, bitcast=True)  # -0 and 0 are a tie
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - index.to(tl.int64))


@triton.jit
def similarity_of(key):
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def append(buffer, count, similarity, column, chosen, capacity, BLOCK_N: tl.constexpr):
    """Put the chosen entries of a tile [BLOCK_N, BLOCK_M] behind the `count` keys of each line of the buffer."""
    lines = buffer + tl.arange(0, BLOCK_N) * capacity
    slot = count[:, None] + tl.cumsum(chosen.to(tl.int32), 1) - 1
    tl.store(lines[:, None] + slot, key_of(similarity, column[None, :]), mask=chosen)
    return count + tl.sum(chosen.to(tl.int32), 1)


@triton.jit
def clear(buffer, counts, thresholds, count, threshold, target, target_line, k, limit, capacity, BLOCK_N: tl.constexpr):
    """Keep k to `limit` of the best keys of each line, in `target`; all of a line with no more than `limit`.

    Returns how many were kept, and the similarity that a later candidate has to exceed.
    """
    line = tl.arange(0, BLOCK_N)
    tl.store(counts + line, count)
    tl.store(thresholds + line, threshold)
    _clear(buffer, counts, thresholds, target, target_line, k, limit, capacity, BLOCK_N)
    return tl.load(counts + line), tl.load(thresholds + line)


@triton.jit
def _load_keys(lines, count, first):
    slot = first + tl.arange(0, _CHUNK)[None, :]
    present = slot < count[:, None]
    return tl.load(lines[:, None] + slot, mask=present, other=_EMPTY), present


# A function of its own: inlined, its loops and barriers would keep the loop over the bank from being pipelined. Such a
# function takes scalars only, so the counts are passed through memory.
@triton.jit(noinline=True)
def _clear(buffer, counts, thresholds, target, target_line, k, limit, capacity, BLOCK_N: tl.constexpr):
    tl.debug_barrier()  # what some threads stored others read, here and at the end
    line = tl.arange(0, BLOCK_N)
    lines, targets = buffer + line * capacity, target + line * tl.cast(target_line, tl.int64)
    count, threshold = tl.load(counts + line), tl.load(thresholds + line)
    longest = tl.max(count, 0)
    low = tl.full((BLOCK_N,), _LARGEST, tl.int64)  # `reach` keys, at least k, are not below `low`; `high` is too high
    high = tl.full((BLOCK_N,), _EMPTY, tl.int64)
    for first in range(0, longest, _CHUNK):
        key, present = _load_keys(lines, count, first)
        low = tl.minimum(low, tl.min(tl.where(present, key, _LARGEST), 1))
        high = tl.maximum(high, tl.max(key, 1))
    high += 1
    reach = count
    while tl.max(reach, 0) > limit:
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        above = tl.zeros((BLOCK_N,), tl.int32)
        for first in range(0, longest, _CHUNK):
            key, present = _load_keys(lines, count, first)
            above += tl.sum((present & (key >= middle[:, None])).to(tl.int32), 1)
        enough = above >= k
        searching = reach > limit
        low = tl.where(searching & enough, middle, low)
        reach = tl.where(searching & enough, above, reach)
        high = tl.where(searching & ~enough, middle, high)

    kept = tl.zeros((BLOCK_N,), tl.int32)
    for first in range(0, longest, _CHUNK):
        key, present = _load_keys(lines, count, first)
        keep = present & (key >= low[:, None])
        slot = kept[:, None] + tl.cumsum(keep.to(tl.int32), 1) - 1
        tl.debug_barrier()  # all of the chunk is read before any of it is overwritten
        tl.store(targets[:, None] + slot, key, mask=keep)
        kept += tl.sum(keep.to(tl.int32), 1)
    tl.store(counts + line, kept)
    tl.store(thresholds + line, tl.where(kept >= k, tl.maximum(threshold, similarity_of(low)), threshold))
    tl.debug_barrier()


def buffer_shape(k: int, tile: int) -> tuple[int, int]:
    """(capacity of a line, limit of what a clearing may leave) for k of a bank that comes in tiles."""
    room = max(k, 4 * tile)  # for new candidates
    return k + room + tile, k + room // 4
