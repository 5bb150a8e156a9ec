"""Putting the keys of a selection by the buffer alone into order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .library import bind


class OrderKeysParams(NamedTuple):
    """As ``csrc/cuda/order.cu`` has them."""

    keys: Tensor
    count: int  # type: ignore[assignment]  # hides tuple.count
    similarity: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


_order_keys = bind("order_keys", OrderKeysParams)


def empty_selection(shape: torch.Size, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Memory for similarities and rows, both [*shape, k]."""
    similarity = torch.empty((*shape, k), dtype=torch.float32, device=device)
    return similarity, torch.empty((*shape, k), dtype=torch.int64, device=device)


def put_in_order(keys: Tensor, similarity: Tensor, index: Tensor) -> None:
    """The k best of a query's keys [G, N, count], in descending order, as similarities and rows [G, N, k]."""
    _order_keys(OrderKeysParams(keys=keys, count=keys.shape[2], similarity=similarity, index=index), keys)
