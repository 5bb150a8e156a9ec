"""Sorting the candidates of a selection."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..gpu import selection_of
from .library import bind

_SORTED = 4096  # candidates of a query that one block puts into order


class OrderKeysParams(NamedTuple):
    """As ``csrc/cuda/order.cu`` has them."""

    keys: Tensor
    similarity: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


_order_keys = bind("order_keys", OrderKeysParams)


def in_order(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Similarities and rows, both [G, N, k], of the k best of ``keys`` [G, N, any number], in descending order."""
    if k > 0 and keys.shape[2] > _SORTED:
        keys = keys.topk(min(k, keys.shape[2]), sorted=True).values
    if keys.shape[2] > _SORTED:
        return selection_of(keys, k)
    similarity = torch.empty((*keys.shape[:2], k), dtype=torch.float32, device=keys.device)
    index = torch.empty((*keys.shape[:2], k), dtype=torch.int64, device=keys.device)
    if k > 0:
        _order_keys(OrderKeysParams(keys=keys, similarity=similarity, index=index), keys)
    return similarity, index
