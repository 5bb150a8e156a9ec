"""Labels as the passes over the bank compare them: in one instruction for a pair of rows.

As float32, which has every whole number up to 2**24, a bank row of no class can be NaN: it is neither less nor more
than any label, as little as one of the query's own class. A larger label is infinite there, of another class than any
that fits. A query whose own label is larger has NaN: no bank row is eligible for it in the passes, and it is flagged.
"""

from __future__ import annotations

import triton
import triton.language as tl

LARGEST = tl.constexpr(2**24)


@triton.jit
def of_another_class(label, own_label):
    """Whether a bank row of this label is of another class than the query; a bank row of no class is not."""
    return (label < own_label) | (label > own_label)


@triton.jit
def narrowed(label, IN_BANK: tl.constexpr):
    """int64 labels as float32; of no class is NaN in the bank, and for a query -1, which no bank row has."""
    none: tl.constexpr = float("nan") if IN_BANK else -1.0
    larger: tl.constexpr = float("inf") if IN_BANK else float("nan")
    return tl.where(label < 0, none, tl.where(label <= LARGEST, label.to(tl.float32), larger))
