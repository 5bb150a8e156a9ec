"""A query's limit from its group maxima: :mod:`..thresholds` has the reason, and the error bound."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .library import bind


class LimitsParams(NamedTuple):
    """As ``csrc/cuda/limits.cu`` has them."""

    maxima: Tensor
    lengths: Tensor | None
    query_labels: Tensor | None
    k: int
    error: float
    limits: Tensor
    found: Tensor


_limits = bind("limits", LimitsParams)


def limits_of(
    maxima: Tensor, k: int, error: float, lengths: Tensor | None, query_labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What a similarity has to reach, and -1 for the queries that need the buffer, 0 for the others; both [G, N].

    Args:
        maxima: [G, N, groups] of the first pass.
        k: rows that are selected.
        error: bound of a product's error.
        lengths: [G, N] of the queries times that of the longest bank row; None with unit rows.
        query_labels: [G, N] int64; a query whose label does not fit needs the buffer.
    """
    shape, device = maxima.shape[:2], maxima.device
    limits = torch.empty(shape, dtype=torch.float32, device=device)
    found = torch.empty(shape, dtype=torch.int32, device=device)
    _limits(
        LimitsParams(
            maxima=maxima,
            lengths=lengths,
            query_labels=query_labels,
            k=k,
            error=error,
            limits=limits,
            found=found,
        ),
        maxima,
    )
    return limits, found
