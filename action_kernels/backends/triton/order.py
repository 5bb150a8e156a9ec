"""The k best keys of every query, in descending order."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ..gpu import EMPTY, selection_of
from .launch import INTERPRETED, kernel, on_device, power_of_two
from .selection import similarity_of

# Up to which k a kernel puts keys into order. The interpreter takes seconds for a few of them.
SORTED_IN_REGISTERS = 0 if INTERPRETED else 1024
AT_ONCE = 128  # keys of a line that are sorted at a time, if k is not more
SORTED = 1 << 20  # keys that PyTorch puts into order at a time: sorting takes several times their memory
_EMPTY = tl.constexpr(EMPTY)


@kernel
def _order(keys, similarity, index, lines, line, k, BLOCK_Q: tl.constexpr, KEYS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    slot = tl.arange(0, KEYS)
    key = tl.full((BLOCK_Q, KEYS), _EMPTY, tl.int64)
    for first in range(0, line, KEYS):
        there = (row < lines)[:, None] & (first + slot < line)[None, :]
        more = tl.load(keys + row[:, None] * line + (first + slot)[None, :], mask=there, other=_EMPTY)
        # Of a falling and a rising line, the larger at every place are the largest of all.
        key = tl.sort(tl.maximum(key, tl.sort(more)), descending=True)
    place = row[:, None] * k + slot[None, :]
    wanted = (row < lines)[:, None] & (slot < k)[None, :]
    tl.store(similarity + place, tl.where(key == _EMPTY, float("-inf"), similarity_of(key)), mask=wanted)
    tl.store(index + place, tl.where(key == _EMPTY, -1, 0xFFFFFFFF - (key & 0xFFFFFFFF)), mask=wanted)


def in_order(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Similarities and rows, both [..., k], of the k best of ``keys`` [..., at least 1], in descending order."""
    shape, line = (*keys.shape[:-1], k), keys.shape[-1]
    similarity = torch.empty(shape, dtype=torch.float32, device=keys.device)
    index = torch.empty(shape, dtype=torch.int64, device=keys.device)
    if k > SORTED_IN_REGISTERS:
        parts = (x.flatten(0, -2).split(max(1, SORTED // line)) for x in (keys, similarity, index))
        for part in zip(*parts, strict=True):
            _write_in_order(*part)
        return similarity, index
    lines = keys.numel() // line
    wide = power_of_two(max(k, min(line, AT_ONCE)))
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
