"""InfoNCE over the bank rows that an index names, and its gradients."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from .indexed_rows import REGISTERS, bank_gradient, block_rows, index_entries, measured_rows, tile_sizes, unit
from .launch import LOG2E, capability, kernel, on_device
from .rows import raw_gradient
from .selection import LOWEST
from .statistics import center_of, reciprocal, whole_reciprocal

_LOG2E = tl.constexpr(LOG2E)


@kernel
def _info_nce(
    query,
    positive,
    bank,
    index,
    loss,
    lse,
    queries,
    rows,
    features,
    k,
    inverse_temp,
    inverse_low,
    query_g,
    query_n,
    query_d,
    positive_g,
    positive_n,
    positive_d,
    bank_g,
    bank_n,
    bank_d,
    NORMALIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    blocks = tl.cdiv(queries, BLOCK_Q)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    line = group * queries + row
    q = unit(block_rows(query, group, row, queries, features, query_g, query_n, query_d, BLOCK_D), 1, NORMALIZE)
    p = block_rows(positive, group, row, queries, features, positive_g, positive_n, positive_d, BLOCK_D)
    own = tl.sum(q * unit(p, 1, NORMALIZE), 1)
    factor = inverse_temp * _LOG2E
    top, total = own, tl.full((BLOCK_Q,), 1.0, tl.float32)
    for first in range(0, k, BLOCK_K):
        named, valid, _ = index_entries(index, line, row < queries, first, k, rows, BLOCK_K)
        b, to_unit = measured_rows(bank, group, named, valid, features, bank_g, bank_n, bank_d, NORMALIZE, BLOCK_D)
        similarity = tl.where(valid, tl.sum(q[:, None, :] * b, 2) * to_unit, LOWEST)
        higher = tl.maximum(top, tl.max(similarity, 1))
        total = total * tl.exp2((top - higher) * factor) + tl.sum(tl.exp2((similarity - higher[:, None]) * factor), 1)
        top = higher
    log_total = tl.log(total)
    tl.store(loss + line, log_total + (top - own) * inverse_temp, mask=row < queries)
    whole = top.to(tl.float64) * whole_reciprocal(inverse_temp, inverse_low) + log_total.to(tl.float64)
    tl.store(lse + line, whole, mask=row < queries)


@kernel
def _info_nce_grad(
    query,
    positive,
    bank,
    index,
    grad_loss,
    lse,
    weights,
    query_grad,
    positive_grad,
    queries,
    rows,
    features,
    k,
    inverse_temp,
    inverse_low,
    query_g,
    query_n,
    query_d,
    positive_g,
    positive_n,
    positive_d,
    bank_g,
    bank_n,
    bank_d,
    NORMALIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Weights of the indexed similarities, and the gradients that they make in query and positive."""
    blocks = tl.cdiv(queries, BLOCK_Q)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    line = group * queries + row
    inside = (row < queries)[:, None] & (tl.arange(0, BLOCK_D) < features)[None, :]
    raw_query = block_rows(query, group, row, queries, features, query_g, query_n, query_d, BLOCK_D).to(tl.float32)
    q = unit(raw_query, 1, NORMALIZE)
    sums = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    factor = inverse_temp * _LOG2E
    scale = tl.load(grad_loss + line, mask=row < queries, other=0.0) * inverse_temp
    whole = tl.load(lse + line, mask=row < queries, other=0.0)
    center, rest = center_of(whole, whole_reciprocal(inverse_temp, inverse_low))
    for first in range(0, k, BLOCK_K):
        named, valid, listed = index_entries(index, line, row < queries, first, k, rows, BLOCK_K)
        b, to_unit = measured_rows(bank, group, named, valid, features, bank_g, bank_n, bank_d, NORMALIZE, BLOCK_D)
        entry = line[:, None] * k + first + tl.arange(0, BLOCK_K)[None, :]
        similarity = tl.sum(q[:, None, :] * b, 2) * to_unit
        p = tl.where(valid, tl.exp2((similarity - center[:, None]) * factor - rest[:, None]), 0.0)
        total += tl.sum(p, 1)
        w = tl.where(valid, scale[:, None] * p, 0.0)
        if weights is not None:
            tl.store(weights + entry, w, mask=listed)
        sums += tl.sum((w * to_unit)[:, :, None] * b, 1)
    target = line[:, None] * features + tl.arange(0, BLOCK_D)[None, :]
    # d loss / d <q, p> = (p_positive - 1) / temp, which is minus the other probabilities.
    away = (scale * total)[:, None]
    raw_positive = block_rows(positive, group, row, queries, features, positive_g, positive_n, positive_d, BLOCK_D)
    raw_positive = raw_positive.to(tl.float32)
    sums -= away * unit(raw_positive, 1, NORMALIZE)
    if positive_grad is not None:
        grad = -away * q
        if NORMALIZE:
            grad = raw_gradient(grad, raw_positive, 1)
        tl.store(positive_grad + target, grad, mask=inside)
    if query_grad is not None:
        if NORMALIZE:
            sums = raw_gradient(sums, raw_query, 1)
        tl.store(query_grad + target, sums, mask=inside)


def anatomical_contrast(
    query: Tensor, positive: Tensor, bank: Tensor, index: Tensor, temp: float, normalize: bool
) -> tuple[Tensor, Tensor]:
    groups, queries, features = query.shape
    k, index = index.shape[2], index.contiguous()
    loss = torch.empty((groups, queries), dtype=torch.float32, device=query.device)
    lse = torch.empty((groups, queries), dtype=torch.float64, device=query.device)
    sizes = tile_sizes(features, k)
    with on_device(query):
        _info_nce[(groups * -(-queries // sizes["outer"]),)](
            query,
            positive,
            bank,
            index,
            loss,
            lse,
            queries,
            bank.shape[1],
            features,
            k,
            *reciprocal(temp),
            *query.stride(),
            *positive.stride(),
            *bank.stride(),
            NORMALIZE=normalize,
            BLOCK_Q=sizes["outer"],
            BLOCK_K=sizes["inner"],
            BLOCK_D=sizes["BLOCK_D"],
            num_warps=sizes["num_warps"],
            maxnreg=REGISTERS,
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
    weights = query.new_empty(index.shape, dtype=torch.float32) if with_bank_grad else None
    groups, queries, features = query.shape
    k = index.shape[2]
    query_grad = torch.empty(query.shape if with_query_grad else 0, dtype=torch.float32, device=query.device)
    positive_grad = torch.empty(positive.shape if with_positive_grad else 0, dtype=torch.float32, device=query.device)
    bank_grad = query.new_empty(0, dtype=torch.float32)
    few = features > 256 and capability(query.device) >= 100  # Triton 3.6 spills with more for B200
    sizes = tile_sizes(features, k, 1024 if few else 2048)
    with on_device(query):
        _info_nce_grad[(groups * -(-queries // sizes["outer"]),)](
            query,
            positive,
            bank,
            index,
            grad_loss.contiguous(),
            lse.contiguous(),
            weights,
            query_grad if with_query_grad else None,
            positive_grad if with_positive_grad else None,
            queries,
            bank.shape[1],
            features,
            k,
            *reciprocal(temp),
            *query.stride(),
            *positive.stride(),
            *bank.stride(),
            NORMALIZE=normalize,
            BLOCK_Q=sizes["outer"],
            BLOCK_K=sizes["inner"],
            BLOCK_D=sizes["BLOCK_D"],
            num_warps=sizes["num_warps"],
            maxnreg=REGISTERS,
        )
    if weights is not None:
        bank_grad = bank_gradient(weights, query, bank, index, normalize)
    return query_grad, positive_grad, bank_grad
