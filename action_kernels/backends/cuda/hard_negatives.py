"""The masked top-k of similarities, and its gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..gpu import sorted_entries, tf32_allowed
from ..native import contiguous_labels
from .library import bind, empty


class HardNegativesParams(NamedTuple):
    """As ``csrc/params/hard_negatives.h`` has them."""

    query: Tensor
    bank: Tensor
    query_labels: Tensor | None
    bank_labels: Tensor | None
    normalize: bool
    similarity: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    tf32: bool
    workspace: Tensor | None


class HardNegativesGradientParams(NamedTuple):
    """As ``csrc/params/hard_negatives.h`` has them."""

    grad_similarity: Tensor
    query: Tensor
    bank: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    normalize: bool
    query_grad: Tensor | None
    bank_grad: Tensor | None
    order: Tensor | None
    starts: Tensor | None
    workspace: Tensor | None


_forward = bind("hard_negatives", HardNegativesParams)
_gradient = bind("hard_negatives_gradient", HardNegativesGradientParams)


def hard_negatives(
    query: Tensor,
    bank: Tensor,
    k: int,
    query_labels: Tensor | None,
    bank_labels: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    groups, queries, _ = query.shape
    query_labels, bank_labels = contiguous_labels(query_labels, bank_labels)
    similarity = empty((groups, queries, k), query.device)
    index = empty((groups, queries, k), query.device, torch.int64)
    _forward(
        HardNegativesParams(
            query=query,
            bank=bank,
            query_labels=query_labels,
            bank_labels=bank_labels,
            normalize=normalize,
            similarity=similarity,
            index=index,
            tf32=tf32_allowed(),
            workspace=None,
        )
    )
    return similarity, index


def hard_negatives_gradient(
    grad_similarity: Tensor,
    query: Tensor,
    bank: Tensor,
    index: Tensor,
    normalize: bool,
    with_query_grad: bool,
    with_bank_grad: bool,
) -> tuple[Tensor, Tensor]:
    index = index.contiguous()
    query_grad = empty(query.shape if with_query_grad else (0,), query.device)
    bank_grad = empty(bank.shape if with_bank_grad else (0,), query.device)
    order, starts = sorted_entries(index, bank.shape[1]) if with_bank_grad else (None, None)
    _gradient(
        HardNegativesGradientParams(
            grad_similarity=grad_similarity.contiguous(),
            query=query,
            bank=bank,
            index=index,
            normalize=normalize,
            query_grad=query_grad if with_query_grad else None,
            bank_grad=bank_grad if with_bank_grad else None,
            order=order,
            starts=starts,
            workspace=None,
        )
    )
    return query_grad, bank_grad
