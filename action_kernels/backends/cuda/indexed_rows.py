"""The gradient of indexed rows in the bank."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..gpu import sorted_entries
from .library import bind
from .rows import IndexedQueries, empty_gradient


class IndexedBankGradientParams(NamedTuple):
    """As ``csrc/cuda/indexed_rows.cu`` has them."""

    query: Tensor
    query_scale: Tensor
    bank: Tensor
    order: Tensor
    starts: Tensor
    weights: Tensor
    normalize: bool
    bank_grad: Tensor


_indexed_bank_gradient = bind("indexed_bank_gradient", IndexedBankGradientParams)


def bank_gradient(weights: Tensor, query: IndexedQueries, bank: Tensor, index: Tensor, normalize: bool) -> Tensor:
    """Gradient [G, M, D] in the raw bank rows of the indexed similarities' sum with ``weights`` [G, N, k]."""
    order, starts = sorted_entries(index, bank.shape[1])
    bank_grad = empty_gradient(bank, True)
    _indexed_bank_gradient(
        IndexedBankGradientParams(
            query=query.data,
            query_scale=query.scale,
            bank=bank,
            order=order,
            starts=starts,
            weights=weights,
            normalize=normalize,
            bank_grad=bank_grad,
        ),
        bank,
    )
    return bank_grad
