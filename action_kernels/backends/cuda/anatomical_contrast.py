"""InfoNCE over the bank rows that an index names, and its gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .indexed_rows import bank_gradient
from .library import bind
from .rows import empty_gradient, prepare_queries


class InfoNceParams(NamedTuple):
    """As ``csrc/cuda/anatomical_contrast.cu`` has them."""

    query: Tensor
    query_scale: Tensor
    query_inverse: Tensor
    positive: Tensor
    positive_scale: Tensor
    positive_inverse: Tensor
    bank: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    temp: float
    normalize: bool
    loss: Tensor
    lse: Tensor


class InfoNceGradientParams(NamedTuple):
    """As ``csrc/cuda/anatomical_contrast.cu`` has them."""

    query: Tensor
    query_scale: Tensor
    query_inverse: Tensor
    positive: Tensor
    positive_scale: Tensor
    positive_inverse: Tensor
    bank: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    temp: float
    normalize: bool
    lse: Tensor
    grad_loss: Tensor
    weights: Tensor | None
    query_grad: Tensor | None
    positive_grad: Tensor | None


_info_nce = bind("info_nce", InfoNceParams)
_info_nce_gradient = bind("info_nce_gradient", InfoNceGradientParams)


def anatomical_contrast(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    index: Tensor,
    temp: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    rows, positives = prepare_queries(normalize, query, positive)
    loss = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
    lse = torch.empty(query.shape[:2], dtype=torch.float64, device=query.device)
    _info_nce(
        InfoNceParams(
            query=rows.data,
            query_scale=rows.scale,
            query_inverse=rows.inverse,
            positive=positives.data,
            positive_scale=positives.scale,
            positive_inverse=positives.inverse,
            bank=bank,
            index=index.contiguous(),
            temp=temp,
            normalize=normalize,
            loss=loss,
            lse=lse,
        ),
        bank,
    )
    return loss, lse


def anatomical_contrast_gradient(
    grad_loss: Tensor,
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    index: Tensor,
    lse: Tensor,
    temp: float,
    normalize: bool,
    with_query_grad: bool,
    with_positive_grad: bool,
    with_bank_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, positives = prepare_queries(normalize, query, positive)
    index = index.contiguous()
    query_grad, positive_grad = empty_gradient(query, with_query_grad), empty_gradient(positive, with_positive_grad)
    bank_grad = empty_gradient(bank, False)
    weights = torch.empty(index.shape, dtype=torch.float32, device=query.device) if with_bank_grad else None
    _info_nce_gradient(
        InfoNceGradientParams(
            query=rows.data,
            query_scale=rows.scale,
            query_inverse=rows.inverse,
            positive=positives.data,
            positive_scale=positives.scale,
            positive_inverse=positives.inverse,
            bank=bank,
            index=index,
            temp=temp,
            normalize=normalize,
            lse=lse.contiguous(),
            grad_loss=grad_loss.contiguous(),
            weights=weights,
            query_grad=query_grad if with_query_grad else None,
            positive_grad=positive_grad if with_positive_grad else None,
        ),
        bank,
    )
    if weights is not None:
        bank_grad = bank_gradient(weights, rows, bank, index, normalize)
    return query_grad, positive_grad, bank_grad
