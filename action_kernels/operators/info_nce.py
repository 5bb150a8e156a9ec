"""InfoNCE of queries against their positives and every row of a bank.

Source: van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", arXiv 1807.03748,
equation 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dtypes import working_dtype
from ..unit_rows import unit
from . import arguments, temperature
from .log_sum_exp import log_sum_exp
from .shapes import reduce
from .temperature import Temperature


def info_nce(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    *,
    temp: Temperature = 0.1,
    positive_in_bank: bool = False,
    reduction: str = "mean",
    normalize: bool = True,
) -> Tensor:
    """InfoNCE of every query against its positive and all rows of the bank, whose similarities are never stored.

    ``loss_i = -log( e^{<q_i, p_i> / temp} / (e^{<q_i, p_i> / temp} + sum_j e^{<q_i, bank_j> / temp}) )``, as in MoCo,
    whose bank holds negatives alone. Where the positives are rows of the bank, as in SimCLR or CLIP, the sum has them
    already: pass ``bank[target]`` and ``positive_in_bank=True``, and the loss is the cross-entropy of ``target``.

    Args:
        query: [(G,) N, D], differentiable.
        positive: [(G,) N, D], differentiable.
        bank: [(G,) M, D], differentiable (the rows of a ``MemoryBank`` are detached).
        temp: temperature, > 0; differentiable where it is a tensor of one element.
        positive_in_bank: whether every positive is one of the bank's rows.
        reduction: ``"none"`` gives [(G,) N]; ``"mean"`` and ``"sum"`` run over all rows of all groups.
        normalize: scale every row to unit length first, so that similarities are cosines.

    Returns:
        The loss; zero, with a graph, where there are no queries, and for an empty bank without the positives.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, the temperature is not positive, or the bank is empty and
            ``positive_in_bank``.
    """
    arguments.check_reduction(reduction)
    arguments.check_rows(query=query, positive=positive, bank=bank)
    if positive.shape != query.shape:
        raise ValueError(f"positive must have the shape of query, got {tuple(positive.shape)} and {tuple(query.shape)}")
    if positive_in_bank and query.shape[-2] and not bank.shape[-2]:
        raise ValueError(f"bank of shape {tuple(bank.shape)} is empty: positive_in_bank says that it has the positives")
    lse = log_sum_exp(query, bank, temp=temp, normalize=normalize)
    loss = loss_of(lse, query, positive, temp, positive_in_bank, normalize, working_dtype(query, positive, bank))
    return reduce(loss, reduction, query.dim())


def loss_of(
    lse: Tensor,
    query: Tensor,
    positive: Tensor,
    temp: Temperature,
    positive_in_bank: bool,
    normalize: bool,
    dtype: torch.dtype,
) -> Tensor:
    """The loss of every query in ``dtype``, from the log-sum-exp of its negatives, or of them and the positive."""
    similarity = (unit(query, normalize, dtype) * unit(positive, normalize, dtype)).sum(-1)
    beyond = (
        lse - (similarity / temperature.scalar(temp, dtype)).double()
    )  # a small loss is the difference of two large numbers
    loss = beyond if positive_in_bank else torch.logaddexp(beyond, torch.zeros_like(beyond))
    return loss.to(dtype)
