"""Labels as the passes over the bank compare them: in one instruction for a pair of rows.

As float32, which has every whole number up to 2**24, a row of no class can be NaN: it is neither less nor more than any
label, as little as one of the query's own class. Where the bank has a larger label, the passes are not used.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..thresholds import AS_THEY_ARE, Placement
from .launch import INTERPRETED, kernel, on_device
from .placement import place_of

LARGEST = tl.constexpr(2**24)
_BLOCK = 1 << 14 if INTERPRETED else 1024  # labels of a program


@triton.jit
def of_another_class(label, own_label):
    """Whether a bank row of this label is of another class than the query; a bank row of no class is not."""
    return (label < own_label) | (label > own_label)


@kernel
def _narrow(labels, narrow, wide, rows, none, place_tiles, place_block, BLOCK: tl.constexpr):
    blocks = tl.cdiv(rows, BLOCK)
    base = (tl.program_id(0) // blocks).to(tl.int64) * rows
    row = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    label = tl.load(labels + base + row, mask=row < rows, other=-1)
    fits = label <= LARGEST
    narrowed = tl.where((label >= 0) & fits, label.to(tl.float32), none)
    tl.store(narrow + base + place_of(row, place_tiles, place_block), narrowed, mask=row < rows)
    if wide is not None:
        tl.store(
            wide + tl.zeros((BLOCK,), tl.int32), tl.full((BLOCK,), 1, tl.int32), mask=(row < rows) & (label > LARGEST)
        )


def _narrowed(labels: Tensor, wide: Tensor | None, none: float, placement: Placement) -> Tensor:
    groups, rows = labels.shape
    result = torch.empty((groups, rows), dtype=torch.float32, device=labels.device)
    with on_device(labels):
        _narrow[(groups * -(-rows // _BLOCK),)](labels, result, wide, rows, none, *placement, BLOCK=_BLOCK)
    return result


def narrow(query_labels: Tensor, bank_labels: Tensor, placement: Placement) -> tuple[Tensor, Tensor, Tensor]:
    """int64 labels [G, N] and [G, M] as float32, the bank's placed like its rows; [1] not 0 where one is too large.

    A query's label that is too large, or of no class, is -1: no bank row has it.
    """
    wide = torch.zeros(1, dtype=torch.int32, device=bank_labels.device)
    of_queries = _narrowed(query_labels, None, -1.0, AS_THEY_ARE)
    return of_queries, _narrowed(bank_labels, wide, float("nan"), placement), wide
