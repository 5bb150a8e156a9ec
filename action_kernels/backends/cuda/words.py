"""Lines of words for a second pass's verdicts."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Words(NamedTuple):
    """What a pass compares with, and where its verdicts go."""

    limits: Tensor  # [G, N]
    query_labels: Tensor | None  # [G, N]
    words: Tensor  # [G, N, line] int64
    counts: Tensor  # [num_splits, G, N] int32 words that a split had for a query, stored or not
    capacity: int  # of a split
