"""The masked top-k of similarities, and its gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .bank_pass import bank_pass
from .finish_and_collect import finish_and_collect
from .indexed_rows import bank_gradient
from .library import bind
from .merge_and_limit import merge_and_limit
from .rows import empty_gradient, prepare_all, prepare_queries
from .search import Search
from .verdicts import verdicts


class SelectedQueryGradientParams(NamedTuple):
    """As ``csrc/cuda/hard_negatives.cu`` has them."""

    query: Tensor
    query_scale: Tensor
    query_inverse: Tensor
    bank: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    normalize: bool
    weights: Tensor
    query_grad: Tensor


_selected_query_gradient = bind("selected_query_gradient", SelectedQueryGradientParams)


def hard_negatives(
    query: Tensor,
    bank: Tensor,
    k: int,
    query_labels: Tensor | None,
    bank_labels: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    if k == 0:
        shape = (*query.shape[:2], 0)
        return query.new_empty(shape, dtype=torch.float32), query.new_empty(shape, dtype=torch.int64)
    search = Search(k, query, bank, query_labels, bank_labels, normalize)
    (query_rows, bank_rows), tf32 = prepare_all(normalize, query, bank, **search.prepared())
    if search.by_limits:
        _, maxima = bank_pass(query_rows, None, bank_rows, tf32, search=search)
        merge_and_limit(None, maxima, query_rows, None, search=search)
        del maxima  # their memory is there again for the verdicts
        verdicts(query_rows, bank_rows, tf32, search)
        finish_and_collect(None, query, normalize, query_rows, bank_rows, tf32, search)
    return search.finish(query_rows, bank_rows, tf32)


def hard_negatives_gradient(
    grad_similarity: Tensor,
    query: Tensor,
    bank: Tensor,
    index: Tensor,
    normalize: bool,
    with_query_grad: bool,
    with_bank_grad: bool,
) -> tuple[Tensor, Tensor]:
    (rows,) = prepare_queries(normalize, query)
    grad_similarity, index = grad_similarity.contiguous(), index.contiguous()
    query_grad, bank_grad = empty_gradient(query, with_query_grad), empty_gradient(bank, False)
    if with_query_grad:
        _selected_query_gradient(
            SelectedQueryGradientParams(
                query=rows.data,
                query_scale=rows.scale,
                query_inverse=rows.inverse,
                bank=bank,
                index=index,
                normalize=normalize,
                weights=grad_similarity,
                query_grad=query_grad,
            ),
            bank,
        )
    if with_bank_grad:
        bank_grad = bank_gradient(grad_similarity, rows, bank, index, normalize)
    return query_grad, bank_grad
