"""The log-sum-exp of a query's similarities to a whole bank: the denominator of every InfoNCE loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends import pinned
from ..dtypes import working_dtype
from ..unit_rows import unit
from . import arguments, temperature
from .registration import Gradients, call, keep, register, register_gradient
from .shapes import banked, grouped, like, ungrouped, zero
from .temperature import Temperature


def log_sum_exp(query: Tensor, bank: Tensor, *, temp: Temperature = 0.1, normalize: bool = True) -> Tensor:
    """``log sum_j e^{<q_i, bank_j> / temp}`` over all rows of the bank, whose similarities are never stored.

    What :func:`info_nce` and its relatives divide by. Its gradient in a query is the bank's mean under the softmax.

    Args:
        query: [(G,) N, D], differentiable.
        bank: [(G,) M, D], differentiable (the rows of a ``MemoryBank`` are detached).
        temp: temperature, > 0; differentiable where it is a tensor of one element.
        normalize: scale every row to unit length first, so that similarities are cosines.

    Returns:
        [(G,) N] float64: at a temperature of 0.01 it reaches 100, and what a float32 would round off is missed in every
        difference with a logit. -inf for an empty bank, with a graph.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, the temperature is not positive.
    """
    arguments.check_normalize(normalize)
    arguments.check_rows(query=query, bank=bank)
    temp = temperature.checked("temp", temp, query)
    arguments.check_features("query", query, "bank", bank)
    if not (query.shape[-2] and banked(bank)):
        return zero(query, bank, temp=temp).double() - torch.inf
    if temperature.varies(temp):
        dtype = working_dtype(query, bank)
        query, bank = unit(query, normalize, dtype), unit(bank, normalize, dtype)
        query, temp, _ = temperature.absorbed(query, temp, dtype)
        normalize = False
    with_query_grad = torch.is_grad_enabled() and query.requires_grad
    lse, _ = call("log_sum_exp", *grouped(query, bank), temp, normalize, with_query_grad)
    return ungrouped(lse, query.dim())


# ---------------------------------------------------------------------------------------------- as PyTorch sees it


def _fake(query: Tensor, bank: Tensor, temp: float, normalize: bool, with_query_grad: bool) -> tuple[Tensor, Tensor]:
    lse = query.new_empty(query.shape[:-1], dtype=torch.float64)
    return lse, like(query, working_dtype(query, bank), with_query_grad)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, bank, temp, normalize, with_query_grad = inputs
    lse, query_grad = output
    ctx.mark_non_differentiable(query_grad)
    ctx.settings = temp, normalize
    ctx.dtypes = query.dtype, bank.dtype
    to_query, to_bank = ctx.needs_input_grad[:2]
    # query_grad is all that a query needs. A graph traced with a query that required no gradient lacks it: its backward
    # pass computes it.
    missing = to_query and not with_query_grad
    again = (query, bank) if to_bank or missing else (None, None)
    keep(ctx, *again, lse if to_bank else None, query_grad if to_query and with_query_grad else None)


def _backward(ctx: Any, grad_lse: Tensor | None, _query_grad: None) -> Gradients:
    if grad_lse is None:
        return (None,) * 5
    query, bank, lse, query_grad = ctx.saved_tensors
    to_query, to_bank = ctx.needs_input_grad[:2]
    query_dtype, bank_dtype = ctx.dtypes
    of_query = of_bank = None
    if to_query:
        if query_grad is None:
            with pinned(ctx.backend or None):
                query_grad = call("log_sum_exp", query, bank, *ctx.settings, True)[1]
        of_query = (grad_lse.to(query_grad.dtype).unsqueeze(-1) * query_grad).to(query_dtype)
    if to_bank:
        bank_grad = call("log_sum_exp_bank_gradient", grad_lse, query, bank, lse, *ctx.settings, ctx.backend)
        of_bank = bank_grad.to(bank_dtype)
    return of_query, of_bank, None, None, None


register(
    "log_sum_exp",
    "(Tensor query, Tensor bank, float temp, bool normalize, bool with_query_grad) -> (Tensor lse, Tensor query_grad)",
    rows=("query", "bank"),
    fake=_fake,
    save=_save,
    backward=_backward,
)


def _bank_gradient_fake(
    grad_lse: Tensor, query: Tensor, bank: Tensor, lse: Tensor, temp: float, normalize: bool, backend: str
) -> Tensor:
    return like(bank, working_dtype(query, bank))


register_gradient(
    "log_sum_exp_bank_gradient",
    "(Tensor grad_lse, Tensor query, Tensor bank, Tensor lse, float temp, bool normalize, str backend) -> Tensor",
    operator="log_sum_exp",
    rows=("query", "bank"),
    fake=_bank_gradient_fake,
)
