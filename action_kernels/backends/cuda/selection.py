"""Putting the keys of a selection into order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..gpu import selection_of
from .library import bind

_SORTED = 4096  # keys of a query that one block puts into order


class OrderKeysParams(NamedTuple):
    """As ``csrc/cuda/order.cu`` has them."""

    keys: Tensor
    found: Tensor | None
    count: int  # type: ignore[assignment]  # hides tuple.count
    similarity: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


_order_keys = bind("order_keys", OrderKeysParams)


def in_order(keys: Tensor, k: int, count: int, found: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Similarities and rows, both [G, N, k], of the k best of a query's keys, in descending order.

    Args:
        keys: [G, N, count or more].
        k: rows to select, with ``found`` at most 4096.
        count: keys of a query for which the buffer has selected.
        found: [G, N] keys of a query, no more than 4096, or -1: the buffer has selected; all of them where it is None.
    """
    if found is None and count > _SORTED:
        keys = keys[..., :count].topk(min(k, count), sorted=True).values
        count = keys.shape[2]
        if count > _SORTED:
            return selection_of(keys, k)
    similarity = torch.empty((*keys.shape[:2], k), dtype=torch.float32, device=keys.device)
    index = torch.empty((*keys.shape[:2], k), dtype=torch.int64, device=keys.device)
    _order_keys(OrderKeysParams(keys=keys, found=found, count=count, similarity=similarity, index=index), keys)
    return similarity, index
