"""Draws by the relation of classes: the same integers on every backend."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from .launch import INTERPRETED, kernel, on_device

_BLOCK = 1 << 14 if INTERPRETED else 256  # draws of a program


@kernel
def _draw(
    query_labels,
    thresholds,
    class_start,
    bank_rows,
    index,
    total,
    queries,
    rows,
    classes,
    k,
    seed,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = entry < total
    line = entry // k
    query, group = line % queries, line // queries
    label = tl.load(query_labels + line, mask=there, other=-1)
    known = (label >= 0) & (label < classes)
    threshold = thresholds + (group * classes + tl.where(known, label, 0)) * classes
    sum = tl.load(threshold + classes - 1, mask=there & known, other=0)
    # Philox4x32-10 (Salmon et al., SC 2011).
    counter = (entry % k).to(tl.uint32)
    of_class, of_row, _, _ = tl.philox(seed, counter, query.to(tl.uint32), group.to(tl.uint32), counter * 0)
    target = (of_class.to(tl.int64) * sum) >> 32  # sums are less than 2**31
    low = tl.zeros((BLOCK,), tl.int64)  # the first class with a threshold above the target
    high = low + (classes - 1)
    drawable = there & known & (sum != 0)
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        searching = drawable & (low < high)
        above = tl.load(threshold + middle, mask=searching, other=0) > target
        high = tl.where(searching & above, middle, high)
        low = tl.where(searching & ~above, middle + 1, low)
    first = class_start + group * (classes + 1) + low
    start = tl.load(first, mask=drawable, other=0)
    members = tl.load(first + 1, mask=drawable, other=0) - start
    drawable = drawable & (members > 0)
    place = start + ((of_row.to(tl.int64) * members) >> 32)
    row = tl.load(bank_rows + group * rows + place, mask=drawable, other=-1)
    tl.store(index + entry, row, mask=there)


def relation_negatives(
    query_labels: Tensor, thresholds: Tensor, class_start: Tensor, rows: Tensor, k: int, seed: int
) -> Tensor:
    groups, queries = query_labels.shape
    classes, total = thresholds.shape[-1], groups * queries * k
    index = torch.empty((groups, queries, k), dtype=torch.int64, device=query_labels.device)
    with on_device(query_labels):
        _draw[(-(-total // _BLOCK),)](
            query_labels.contiguous(),
            thresholds.contiguous(),
            class_start.contiguous(),
            rows.contiguous(),
            index,
            total,
            queries,
            rows.shape[1],
            classes,
            k,
            seed,
            STEPS=(classes - 1).bit_length(),
            BLOCK=_BLOCK,
        )
    return index
