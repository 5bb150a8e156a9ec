"""InfoNCE over the bank rows that an index names, and its gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import scratch_limit
from .launchers import bind, empty


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
    threads: int


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
    threads: int
    scratch_bytes: int


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
    loss = empty(query.shape[:2])
    lse = empty(query.shape[:2], torch.float64)
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
            threads=torch.get_num_threads(),
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
    query_grad = empty(query.shape if with_query_grad else (0,))
    positive_grad = empty(positive.shape if with_positive_grad else (0,))
    bank_grad = empty(bank.shape if with_bank_grad else (0,))
    _gradient(
        AnatomicalContrastGradientParams(
            grad_loss=grad_loss.contiguous(),
            query=query,
            positive=positive,
            bank=bank,
            index=index.contiguous(),
            lse=lse.contiguous(),
            temp=temp,
            normalize=normalize,
            query_grad=query_grad if with_query_grad else None,
            positive_grad=positive_grad if with_positive_grad else None,
            bank_grad=bank_grad if with_bank_grad else None,
            threads=torch.get_num_threads(),
            scratch_bytes=scratch_limit(),
        )
    )
    return query_grad, positive_grad, bank_grad
