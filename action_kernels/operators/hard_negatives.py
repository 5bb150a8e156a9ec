"""The bank rows most similar to each query, among those of another class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dtypes import working_dtype
from . import arguments
from .registration import Gradients, call, keep, register, register_gradient
from .shapes import banked, grouped, grouped_labels, like, nothing, ungrouped, zero


def hard_negatives(
    query: Tensor,
    bank: Tensor,
    k: int,
    *,
    query_labels: Tensor | None = None,
    bank_labels: Tensor | None = None,
    normalize: bool = True,
) -> tuple[Tensor, Tensor]:
    """The ``k`` bank rows most similar to each query, among those of another class.

    Args:
        query: [(G,) N, D], differentiable.
        bank: [(G,) M, D], differentiable.
        k: rows per query, >= 1; may exceed M.
        query_labels: [(G,) N] integers. Without labels every bank row may be selected.
        bank_labels: [(G,) M] integers; given together with ``query_labels``. Rows of the query's own class and rows
            with a negative label are not selected.
        normalize: scale every row to unit length first, so that similarities are cosines.

    Returns:
        ``(similarity, index)``, both [(G,) N, k], in descending order, ties to the lower index. Where fewer than ``k``
        rows qualify, and for similarities that are NaN, the similarity is -inf and the index -1.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, ``k`` < 1, one of the labels is missing.
    """
    arguments.check_k(k)
    arguments.check_normalize(normalize)
    arguments.check_rows(query=query, bank=bank)
    arguments.check_features("query", query, "bank", bank)
    query_labels, bank_labels = arguments.check_labels("query", query, query_labels, bank, bank_labels)
    if not (query.shape[-2] and banked(bank)):
        similarity = zero(query, bank).unsqueeze(-1).expand(*query.shape[:-1], k) - torch.inf
        return similarity, nothing(query, k)
    args = grouped(query, bank), k, grouped_labels(query_labels), grouped_labels(bank_labels), normalize
    similarity, index = call("hard_negatives", *args[0], *args[1:])
    return ungrouped(similarity, query.dim()), ungrouped(index, query.dim())


# ---------------------------------------------------------------------------------------------- as PyTorch sees it


def _fake(
    query: Tensor, bank: Tensor, k: int, query_labels: Tensor | None, bank_labels: Tensor | None, normalize: bool
) -> tuple[Tensor, Tensor]:
    shape = (*query.shape[:-1], k)
    return query.new_empty(shape, dtype=working_dtype(query, bank)), query.new_empty(shape, dtype=torch.int64)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, bank, _, _, _, ctx.normalize = inputs
    ctx.mark_non_differentiable(output[1])
    keep(ctx, query, bank, output[1])


def _backward(ctx: Any, grad_similarity: Tensor | None, _index: None) -> Gradients:
    if grad_similarity is None:
        return (None,) * 6
    query, bank, index = ctx.saved_tensors
    to_query, to_bank = ctx.needs_input_grad[:2]
    grads = call(
        "hard_negatives_gradient", grad_similarity, query, bank, index, ctx.normalize, to_query, to_bank, ctx.backend
    )
    grad_query = grads[0].to(query.dtype) if to_query else None
    grad_bank = grads[1].to(bank.dtype) if to_bank else None
    return grad_query, grad_bank, *(None,) * 4


register(
    "hard_negatives",
    "(Tensor query, Tensor bank, SymInt k, Tensor? query_labels, Tensor? bank_labels, bool normalize)"
    " -> (Tensor similarity, Tensor index)",
    rows=("query", "bank"),
    fake=_fake,
    save=_save,
    backward=_backward,
)


def _gradient_fake(
    grad_similarity: Tensor,
    query: Tensor,
    bank: Tensor,
    index: Tensor,
    normalize: bool,
    with_query_grad: bool,
    with_bank_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    dtype = working_dtype(query, bank)
    return like(query, dtype, with_query_grad), like(bank, dtype, with_bank_grad)


register_gradient(
    "hard_negatives_gradient",
    "(Tensor grad_similarity, Tensor query, Tensor bank, Tensor index, bool normalize, bool with_query_grad,"
    " bool with_bank_grad, str backend) -> (Tensor query, Tensor bank)",
    operator="hard_negatives",
    rows=("query", "bank"),
    fake=_gradient_fake,
)
