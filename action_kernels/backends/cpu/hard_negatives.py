"""The masked top-k of similarities, and its gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..native import contiguous_labels
from . import scratch_limit
from .launchers import bind, empty


class HardNegativesParams(NamedTuple):
    """As ``csrc/params/hard_negatives.h`` has them."""

    query: Tensor
    bank: Tensor
    query_labels: Tensor | None
    bank_labels: Tensor | None
    normalize: bool
    similarity: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    threads: int
    scratch_bytes: int


class HardNegativesGradientParams(NamedTuple):
    """As ``csrc/params/hard_negatives.h`` has them."""

    grad_similarity: Tensor
    query: Tensor
    bank: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    normalize: bool
    query_grad: Tensor | None
    bank_grad: Tensor | None
    threads: int
    scratch_bytes: int


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
    similarity = empty((groups, queries, k))
    index = empty((groups, queries, k), torch.int64)
    _forward(
        HardNegativesParams(
            query=query,
            bank=bank,
            query_labels=query_labels,
            bank_labels=bank_labels,
            normalize=normalize,
            similarity=similarity,
            index=index,
            threads=torch.get_num_threads(),
            scratch_bytes=scratch_limit(),
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
    query_grad = empty(query.shape if with_query_grad else (0,))
    bank_grad = empty(bank.shape if with_bank_grad else (0,))
    _gradient(
        HardNegativesGradientParams(
            grad_similarity=grad_similarity.contiguous(),
            query=query,
            bank=bank,
            index=index.contiguous(),
            normalize=normalize,
            query_grad=query_grad if with_query_grad else None,
            bank_grad=bank_grad if with_bank_grad else None,
            threads=torch.get_num_threads(),
            scratch_bytes=scratch_limit(),
        )
    )
    return query_grad, bank_grad
