"""The masked top-k of similarities, and its gradient."""

from __future__ import annotations

from torch import Tensor

from ...dtypes import working_dtype
from ...unit_rows import unit
from . import selection


def hard_negatives(
    query: Tensor,
    bank: Tensor,
    k: int,
    query_labels: Tensor | None,
    bank_labels: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    dtype = working_dtype(query, bank)
    similarity = unit(query, normalize, dtype) @ unit(bank, normalize, dtype).mT
    return selection.largest(similarity, k, query_labels, bank_labels)


def hard_negatives_gradient(
    grad_similarity: Tensor,
    query: Tensor,
    bank: Tensor,
    index: Tensor,
    normalize: bool,
    with_query_grad: bool,
    with_bank_grad: bool,
) -> tuple[Tensor, Tensor]:
    weight = selection.scatter(grad_similarity, index, bank.shape[-2])
    query_grad, bank_grad = (weight.new_empty(0, dtype=weight.dtype) for _ in range(2))
    if with_query_grad:
        query_grad = selection.query_gradient(weight, query, bank, normalize)
    if with_bank_grad:
        bank_grad = selection.bank_gradient(weight, query, bank, normalize)
    return query_grad, bank_grad
