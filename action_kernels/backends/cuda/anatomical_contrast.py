"""InfoNCE over the bank rows that an index names, and its gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..gpu import sorted_entries
from .library import bind, empty


class AnatomicalContrastParams(NamedTuple):
    """As ``csrc/params/anatomical_contrast.h`` has them."""

    query: Tensor
    positive: Tensor
    bank: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    temp: float
    normalize: bool
    loss: Tensor
    lse: Tensor
    workspace: Tensor | None


class AnatomicalContrastGradientParams(NamedTuple):
    """As ``csrc/params/anatomical_contrast.h`` has them."""

    grad_loss: Tensor
    query: Tensor
    positive: Tensor
    bank: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    lse: Tensor
    temp: float
    normalize: bool
    query_grad: Tensor | None
    positive_grad: Tensor | None
    bank_grad: Tensor | None
    order: Tensor | None
    starts: Tensor | None
    workspace: Tensor | None


_forward = bind("anatomical_contrast", AnatomicalContrastParams)
_gradient = bind("anatomical_contrast_gradient", AnatomicalContrastGradientParams)


def anatomical_contrast(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    index: Tensor,
    temp: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    loss = empty(query.shape[:2], query.device)
    lse = empty(query.shape[:2], query.device, torch.float64)
    _forward(
        AnatomicalContrastParams(
            query=query,
            positive=positive,
            bank=bank,
            index=index.contiguous(),
            temp=temp,
            normalize=normalize,
            loss=loss,
            lse=lse,
            workspace=None,
        )
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
    index = index.contiguous()
    query_grad = empty(query.shape if with_query_grad else (0,), query.device)
    positive_grad = empty(positive.shape if with_positive_grad else (0,), query.device)
    bank_grad = empty(bank.shape if with_bank_grad else (0,), query.device)
    order, starts = sorted_entries(index, bank.shape[1]) if with_bank_grad else (None, None)
    _gradient(
        AnatomicalContrastGradientParams(
            grad_loss=grad_loss.contiguous(),
            query=query,
            positive=positive,
            bank=bank,
            index=index,
            lse=lse.contiguous(),
            temp=temp,
            normalize=normalize,
            query_grad=query_grad if with_query_grad else None,
            positive_grad=positive_grad if with_positive_grad else None,
            bank_grad=bank_grad if with_bank_grad else None,
            order=order,
            starts=starts,
            workspace=None,
        )
    )
    return query_grad, positive_grad, bank_grad
