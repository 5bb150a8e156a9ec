"""The log-sum-exp of the similarities to a bank, and its gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..gpu import tf32_allowed
from .library import bind, empty


class LogSumExpParams(NamedTuple):
    """As ``csrc/params/log_sum_exp.h`` has them."""

    query: Tensor
    bank: Tensor
    temp: float
    normalize: bool
    lse: Tensor
    query_grad: Tensor | None
    tf32: bool
    workspace: Tensor | None


class LogSumExpBankGradientParams(NamedTuple):
    """As ``csrc/params/log_sum_exp.h`` has them."""

    grad_lse: Tensor
    query: Tensor
    bank: Tensor
    lse: Tensor
    temp: float
    normalize: bool
    bank_grad: Tensor
    tf32: bool
    workspace: Tensor | None


_forward = bind("log_sum_exp", LogSumExpParams)
_bank_gradient = bind("log_sum_exp_bank_gradient", LogSumExpBankGradientParams)


def log_sum_exp(
    query: Tensor, bank: Tensor, temp: float, normalize: bool, with_query_grad: bool
) -> tuple[Tensor, Tensor]:
    lse = empty(query.shape[:2], query.device, torch.float64)
    query_grad = empty(query.shape if with_query_grad else (0,), query.device)
    _forward(
        LogSumExpParams(
            query=query,
            bank=bank,
            temp=temp,
            normalize=normalize,
            lse=lse,
            query_grad=query_grad if with_query_grad else None,
            tf32=tf32_allowed(),
            workspace=None,
        )
    )
    return lse, query_grad


def log_sum_exp_bank_gradient(
    grad_lse: Tensor, query: Tensor, bank: Tensor, lse: Tensor, temp: float, normalize: bool
) -> Tensor:
    bank_grad = empty(bank.shape, bank.device)
    _bank_gradient(
        LogSumExpBankGradientParams(
            grad_lse=grad_lse.float().contiguous(),
            query=query,
            bank=bank,
            lse=lse.contiguous(),
            temp=temp,
            normalize=normalize,
            bank_grad=bank_grad,
            tf32=tf32_allowed(),
            workspace=None,
        )
    )
    return bank_grad
