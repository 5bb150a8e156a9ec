"""The log-sum-exp of the similarities to a bank, and its gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import scratch_limit
from .launchers import bind, empty


class LogSumExpParams(NamedTuple):
    """As ``csrc/params/log_sum_exp.h`` has them."""

    query: Tensor
    bank: Tensor
    temp: float
    normalize: bool
    lse: Tensor
    query_grad: Tensor | None
    threads: int
    scratch_bytes: int


class LogSumExpBankGradientParams(NamedTuple):
    """As ``csrc/params/log_sum_exp.h`` has them."""

    grad_lse: Tensor
    query: Tensor
    bank: Tensor
    lse: Tensor
    temp: float
    normalize: bool
    bank_grad: Tensor
    threads: int
    scratch_bytes: int


_forward = bind("log_sum_exp", LogSumExpParams)
_bank_gradient = bind("log_sum_exp_bank_gradient", LogSumExpBankGradientParams)


def log_sum_exp(
    query: Tensor, bank: Tensor, temp: float, normalize: bool, with_query_grad: bool
) -> tuple[Tensor, Tensor]:
    lse = empty(query.shape[:2], torch.float64)
    query_grad = empty(query.shape if with_query_grad else (0,))
    _forward(
        LogSumExpParams(
            query=query,
            bank=bank,
            temp=temp,
            normalize=normalize,
            lse=lse,
            query_grad=query_grad if with_query_grad else None,
            threads=torch.get_num_threads(),
            scratch_bytes=scratch_limit(),
        )
    )
    return lse, query_grad


def log_sum_exp_bank_gradient(
    grad_lse: Tensor, query: Tensor, bank: Tensor, lse: Tensor, temp: float, normalize: bool
) -> Tensor:
    bank_grad = empty(bank.shape)
    _bank_gradient(
        LogSumExpBankGradientParams(
            grad_lse=grad_lse.float().contiguous(),
            query=query,
            bank=bank,
            lse=lse.contiguous(),
            temp=temp,
            normalize=normalize,
            bank_grad=bank_grad,
            threads=torch.get_num_threads(),
            scratch_bytes=scratch_limit(),
        )
    )
    return bank_grad
