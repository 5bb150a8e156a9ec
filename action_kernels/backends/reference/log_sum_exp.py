"""The log-sum-exp of the similarities to a bank, and its gradients."""

from __future__ import annotations

from torch import Tensor

from ...dtypes import working_dtype
from ...unit_rows import unit
from .rows import raw_gradient
from .softmax import log_probability, log_softmax


def log_sum_exp(
    query: Tensor, bank: Tensor, temp: float, normalize: bool, with_query_grad: bool
) -> tuple[Tensor, Tensor]:
    dtype = working_dtype(query, bank)
    bank_rows = unit(bank, normalize, dtype)
    log_p, lse = log_softmax(unit(query, normalize, dtype) @ bank_rows.mT / temp)
    if not with_query_grad:
        return lse, log_p.new_empty(0, dtype=dtype)
    return lse, raw_gradient(log_p.exp() @ bank_rows / temp, query, normalize)


def log_sum_exp_bank_gradient(
    grad_lse: Tensor, query: Tensor, bank: Tensor, lse: Tensor, temp: float, normalize: bool
) -> Tensor:
    dtype = working_dtype(query, bank)
    query_rows = unit(query, normalize, dtype)
    p = log_probability(query_rows @ unit(bank, normalize, dtype).mT / temp, lse).exp()
    weight = grad_lse.to(dtype).unsqueeze(-1) * p / temp
    return raw_gradient(weight.mT @ query_rows, bank, normalize)
