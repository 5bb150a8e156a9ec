"""InfoNCE over the bank rows that an index names, and its gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ...dtypes import working_dtype
from ...unit_rows import unit
from . import selection
from .rows import raw_gradient, without_nan
from .softmax import log_probability, log_softmax


def _contrast_logits(
    query: Tensor, positive: Tensor, bank: Tensor, temp: float, normalize: bool
) -> tuple[Tensor, Tensor]:
    dtype = working_dtype(query, positive, bank)
    query_rows = unit(query, normalize, dtype)
    positive_logit = (query_rows * unit(positive, normalize, dtype)).sum(-1) / temp
    return positive_logit, query_rows @ unit(bank, normalize, dtype).mT / temp


def anatomical_contrast(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    index: Tensor,
    temp: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    positive_logit, bank_logits = _contrast_logits(query, positive, bank, temp, normalize)
    valid = (index >= 0) & (index < bank.shape[-2])
    negative_logits = bank_logits.gather(-1, torch.where(valid, index, 0)).masked_fill(~valid, -torch.inf)
    log_probability, lse = log_softmax(torch.cat([positive_logit.unsqueeze(-1), negative_logits], dim=-1))
    return -log_probability[..., 0], lse


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
    positive_logit, bank_logits = _contrast_logits(query, positive, bank, temp, normalize)
    # d loss / d similarity: (p - 1) / temp for the positive, p / temp for a negative, as often as it was drawn.
    grad_over_temp = grad_loss / temp
    positive_weight = grad_over_temp.unsqueeze(-1) * log_probability(positive_logit.unsqueeze(-1), lse).expm1()
    draws = selection.scatter(torch.ones_like(index, dtype=grad_over_temp.dtype), index, bank.shape[-2])
    probability = log_probability(bank_logits, lse).exp()
    weight = torch.where(draws > 0, draws * probability * grad_over_temp.unsqueeze(-1), 0.0)

    query_grad, positive_grad, bank_grad = (grad_over_temp.new_empty(0, dtype=grad_over_temp.dtype) for _ in range(3))
    if with_query_grad:
        toward_positive = positive_weight * unit(positive, normalize, weight.dtype)
        grad = toward_positive + weight @ without_nan(unit(bank, normalize, weight.dtype))
        query_grad = raw_gradient(grad, query, normalize)
    if with_positive_grad:
        grad = positive_weight * unit(query, normalize, weight.dtype)
        positive_grad = raw_gradient(grad, positive, normalize)
    if with_bank_grad:
        bank_grad = selection.bank_gradient(weight, query, bank, normalize)
    return query_grad, positive_grad, bank_grad
