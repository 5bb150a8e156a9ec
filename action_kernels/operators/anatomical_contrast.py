"""InfoNCE of queries against their positives and the bank rows that an index names: the paper's anatomical contrast.

Source: You et al., "Bootstrapping Semi-supervised Medical Image Segmentation with Anatomical-Aware Contrastive
Distillation", IPMI 2023, arXiv 2206.02307.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dtypes import working_dtype
from ..unit_rows import unit
from . import arguments, temperature
from .registration import Gradients, call, keep, register, register_gradient
from .shapes import banked, grouped, like, reduce, zero
from .temperature import Temperature


def anatomical_contrast(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    index: Tensor,
    *,
    temp: Temperature = 0.5,
    reduction: str = "mean",
    normalize: bool = True,
) -> Tensor:
    """InfoNCE of every query against its positive and the bank rows named by ``index``, read in place.

    ``loss_i = -log( e^{<q_i, p_i> / temp} / (e^{<q_i, p_i> / temp} + sum_j e^{<q_i, bank_index(i,j)> / temp}) )``: the
    paper's anatomical contrast. A row named twice counts twice.

    Args:
        query: [(G,) N, D], differentiable.
        positive: [(G,) N, D], differentiable; an expanded class mean is fine.
        bank: [(G,) M, D], differentiable (the rows of a ``MemoryBank`` are detached).
        index: [(G,) N, k] integers; entries outside 0..M-1, in particular -1, are skipped.
        temp: temperature, > 0; differentiable where it is a tensor of one element.
        reduction: ``"none"`` gives [(G,) N]; ``"mean"`` and ``"sum"`` run over all rows of all groups.
        normalize: scale every row to unit length first, so that similarities are cosines.

    Returns:
        The loss; zero, with a graph, for a query without negatives and where there are no queries.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, the temperature is not positive.
    """
    arguments.check_reduction(reduction)
    arguments.check_normalize(normalize)
    arguments.check_rows(query=query, positive=positive, bank=bank)
    temp = temperature.checked("temp", temp, query)
    if positive.shape != query.shape:
        raise ValueError(f"positive must have the shape of query, got {tuple(positive.shape)} and {tuple(query.shape)}")
    arguments.check_features("query", query, "bank", bank)
    arguments.check_integer("index", index)
    if index.dim() != query.dim() or index.shape[:-1] != query.shape[:-1]:
        raise ValueError(
            f"index must be {arguments.shape_text(query, 'k')} for a query of shape {tuple(query.shape)}, "
            f"got {tuple(index.shape)}"
        )
    arguments.check_device(query=query, index=index)
    if not (query.shape[-2] and banked(bank) and index.shape[-1]):
        return reduce(zero(query, positive, bank, temp=temp), reduction, query.dim())
    if temperature.varies(temp):
        dtype = working_dtype(query, positive, bank)
        query, positive, bank = (unit(x, normalize, dtype) for x in (query, positive, bank))
        query, temp, _ = temperature.absorbed(query, temp, dtype)
        normalize = False
    rows = grouped(query, positive, bank)
    loss, _ = call("anatomical_contrast", *rows, grouped(index.long())[0], temp, normalize)
    return reduce(loss, reduction, query.dim())


# ---------------------------------------------------------------------------------------------- as PyTorch sees it


def _fake(
    query: Tensor, positive: Tensor, bank: Tensor, index: Tensor, temp: float, normalize: bool
) -> tuple[Tensor, Tensor]:
    loss = query.new_empty(query.shape[:-1], dtype=working_dtype(query, positive, bank))
    return loss, torch.empty_like(loss, dtype=torch.float64)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, positive, bank, index, ctx.temp, ctx.normalize = inputs
    ctx.mark_non_differentiable(output[1])
    keep(ctx, query, positive, bank, index, output[1])


def _backward(ctx: Any, grad_loss: Tensor | None, _lse: None) -> Gradients:
    if grad_loss is None:
        return (None,) * 6
    query, positive, bank, index, lse = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]
    grads = call(
        "anatomical_contrast_gradient",
        *(grad_loss, query, positive, bank, index, lse, ctx.temp, ctx.normalize, *wanted, ctx.backend),
    )
    inputs = (query, positive, bank)
    return *(g.to(x.dtype) if w else None for g, x, w in zip(grads, inputs, wanted, strict=True)), None, None, None


register(
    "anatomical_contrast",
    "(Tensor query, Tensor positive, Tensor bank, Tensor index, float temp, bool normalize)"
    " -> (Tensor loss, Tensor lse)",
    rows=("query", "positive", "bank"),
    fake=_fake,
    save=_save,
    backward=_backward,
)


def _gradient_fake(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = working_dtype(query, positive, bank)
    return (
        like(query, dtype, with_query_grad),
        like(positive, dtype, with_positive_grad),
        like(bank, dtype, with_bank_grad),
    )


register_gradient(
    "anatomical_contrast_gradient",
    "(Tensor grad_loss, Tensor query, Tensor positive, Tensor bank, Tensor index, Tensor lse, float temp,"
    " bool normalize, bool with_query_grad, bool with_positive_grad, bool with_bank_grad, str backend)"
    " -> (Tensor query, Tensor positive, Tensor bank)",
    operator="anatomical_contrast",
    rows=("query", "positive", "bank"),
    fake=_gradient_fake,
)
