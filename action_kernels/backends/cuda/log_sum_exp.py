"""The log-sum-exp of the similarities to a bank, and its gradients: the passes of action_contrast without a teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gpu import boost
from .bank_pass import bank_pass, merge_one
from .gradient import gradient, query_terms
from .rows import finish_gradient, prepare_all


def log_sum_exp(
    query: Tensor, bank: Tensor, temp: float, normalize: bool, with_query_grad: bool
) -> tuple[Tensor, Tensor]:
    (query_rows, bank_rows), tf32 = prepare_all(normalize, query, bank)
    sums, _ = bank_pass(query_rows, None, bank_rows, tf32, temp, with_lse=True)
    assert sums is not None  # they were asked for
    lse = merge_one(sums, temp)
    if not with_query_grad:
        return lse, torch.empty(0, dtype=torch.float32, device=query.device)
    terms, _ = query_terms(query_rows, None, lse, None, temp, temp)
    factor = boost(normalize)
    partial = gradient(query_rows, None, bank_rows, tf32, False, terms, temp, temp, (0.0, 0.0, factor))
    return lse, finish_gradient(partial, query, normalize, 1.0 / (temp * factor))


def log_sum_exp_bank_gradient(
    grad_lse: Tensor, query: Tensor, bank: Tensor, lse: Tensor, temp: float, normalize: bool
) -> Tensor:
    (query_rows, bank_rows), tf32 = prepare_all(normalize, query, bank)
    terms, factor = query_terms(query_rows, None, lse.contiguous(), None, temp, temp, grad_lse.float().contiguous())
    grad_scales = 1.0, 0.0, boost(normalize)
    partial = gradient(query_rows, None, bank_rows, tf32, True, terms, temp, temp, grad_scales)
    return finish_gradient(partial, bank, normalize, 1.0 / (temp * boost(normalize)), factor)
