"""Draws by the relation of classes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .library import bind, empty


class RelationNegativesParams(NamedTuple):
    """As ``csrc/params/relation_negatives.h`` has them."""

    query_labels: Tensor
    thresholds: Tensor
    class_start: Tensor
    rows: Tensor
    seed: int
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


_draw = bind("relation_negatives", RelationNegativesParams)


def relation_negatives(
    query_labels: Tensor,
    thresholds: Tensor,
    class_start: Tensor,
    rows: Tensor,
    k: int,
    seed: int,
) -> Tensor:
    index = empty((*query_labels.shape, k), query_labels.device, torch.int64)
    _draw(
        RelationNegativesParams(
            query_labels=query_labels.contiguous(),
            thresholds=thresholds.contiguous(),
            class_start=class_start.contiguous(),
            rows=rows.contiguous(),
            seed=seed,
            index=index,
        )
    )
    return index
