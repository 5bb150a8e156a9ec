"""Similarities with bank rows that an index names: InfoNCE over them, and the gradients of named similarities.

Rows are read in place from strided tensors, a tile [BLOCK_Q, BLOCK_K, D] at a time, and brought to unit length there.
Gradients of the bank are sums over the entries that name a row: sorted by row, and added in the order of the queries.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import INTERPRETED, LOG2E, kernel, on_device, power_of_two
from .rows import raw_gradient, unit_factor
from .selection import LOWEST

_LOG2E = tl.constexpr(LOG2E)
_REGISTERS = 128  # per thread; without a limit the assembler aims at fewer, and spills for it


@triton.jit
def _unit(x, AXIS: tl.constexpr, NORMALIZE: tl.constexpr):
    x = x.to(tl.float32)
    if NORMALIZE:
        factor, _ = unit_factor(x, AXIS)
        x *= tl.expand_dims(factor, AXIS)
    return x


@triton.jit
def _block(x, group, row, rows, features, stride_g, stride_n, stride_d, BLOCK_D: tl.constexpr):
    """Raw rows [BLOCK, BLOCK_D]; zeros outside."""
    column = tl.arange(0, BLOCK_D)
    offset = group * stride_g + row[:, None] * stride_n + column[None, :].to(tl.int64) * stride_d
    return tl.load(x + offset, mask=(row < rows)[:, None] & (column < features)[None, :], other=0.0)


@triton.jit
def _named(x, group, row, valid, features, stride_g, stride_n, stride_d, BLOCK_D: tl.constexpr):
    """Raw rows [.., .., BLOCK_D] by number; zeros where not valid."""
    column = tl.arange(0, BLOCK_D)
    offset = group * stride_g + row[:, :, None] * stride_n + column[None, None, :].to(tl.int64) * stride_d
    return tl.load(x + offset, mask=valid[:, :, None] & (column < features)[None, None, :], other=0.0)


@triton.jit
def _index(index, line, valid_line, first, k, rows, BLOCK_K: tl.constexpr):
    """Entries first... of the index of each line, and which of them name a row; others are 0."""
    slot = first + tl.arange(0, BLOCK_K)
    inside = valid_line[:, None] & (slot < k)[None, :]
    named = tl.load(index + line[:, None] * k + slot[None, :], mask=inside, other=-1)
    valid = (named >= 0) & (named < rows)
    return tl.where(valid, named, 0), valid, inside


@kernel
def _info_nce(
    query, positive, bank, index, center, log_sum, loss, queries, rows, features, k, inverse_temp,
    query_g, query_n, query_d, positive_g, positive_n, positive_d, bank_g, bank_n, bank_d,
    NORMALIZE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(queries, BLOCK_Q)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    line = group * queries + row
    q = _unit(_block(query, group, row, queries, features, query_g, query_n, query_d, BLOCK_D), 1, NORMALIZE)
    p = _block(positive, group, row, queries, features, positive_g, positive_n, positive_d, BLOCK_D)
    own = tl.sum(q * _unit(p, 1, NORMALIZE), 1)
    factor = inverse_temp * _LOG2E
    top, total = own, tl.full((BLOCK_Q,), 1.0, tl.float32)
    for first in range(0, k, BLOCK_K):
        named, valid, _ = _index(index, line, row < queries, first, k, rows, BLOCK_K)
        b = _named(bank, group, named, valid, features, bank_g, bank_n, bank_d, BLOCK_D)
        similarity = tl.where(valid, tl.sum(q[:, None, :] * _unit(b, 2, NORMALIZE), 2), LOWEST)
        higher = tl.maximum(top, tl.max(similarity, 1))
        total = total * tl.exp2((top - higher) * factor) + tl.sum(tl.exp2((similarity - higher[:, None]) * factor), 1)
        top = higher
    log_total = tl.log(total)
    tl.store(center + line, top, mask=row < queries)
    tl.store(log_sum + line, log_total, mask=row < queries)
    tl.store(loss + line, log_total + (top - own) * inverse_temp, mask=row < queries)


@kernel
def _gather_gradient(
    query, positive, bank, index, given, slope, center, rest, weights, grad_query, grad_positive,
    queries, rows, features, k, inverse_temp,
    query_g, query_n, query_d, positive_g, positive_n, positive_d, bank_g, bank_n, bank_d,
    NORMALIZE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Weights of the named similarities, `given` or those of InfoNCE, and the gradients that they make."""
    blocks = tl.cdiv(queries, BLOCK_Q)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    line = group * queries + row
    inside = (row < queries)[:, None] & (tl.arange(0, BLOCK_D) < features)[None, :]
    raw_query = _block(query, group, row, queries, features, query_g, query_n, query_d, BLOCK_D).to(tl.float32)
    q = _unit(raw_query, 1, NORMALIZE)
    sums = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    factor = inverse_temp * _LOG2E
    if given is None:
        scale = tl.load(slope + line, mask=row < queries, other=0.0)
        middle = tl.load(center + line, mask=row < queries, other=0.0)[:, None]
        offset = tl.load(rest + line, mask=row < queries, other=0.0)[:, None]
    for first in range(0, k, BLOCK_K):
        named, valid, listed = _index(index, line, row < queries, first, k, rows, BLOCK_K)
        b = _unit(_named(bank, group, named, valid, features, bank_g, bank_n, bank_d, BLOCK_D), 2, NORMALIZE)
        entry = line[:, None] * k + first + tl.arange(0, BLOCK_K)[None, :]
        if given is None:
            similarity = tl.sum(q[:, None, :] * b, 2)
            p = tl.where(valid, tl.exp2((similarity - middle) * factor - offset), 0.0)
            total += tl.sum(p, 1)
            w = tl.where(valid, scale[:, None] * p, 0.0)
            if weights is not None:
                tl.store(weights + entry, w, mask=listed)
        else:
            w = tl.load(given + entry, mask=valid, other=0.0)
        sums += tl.sum(w[:, :, None] * b, 1)
    target = line[:, None] * features + tl.arange(0, BLOCK_D)[None, :]
    if given is None:
        # d loss / d <q, p> = (p_positive - 1) / temp, which is minus the other probabilities.
        away = (scale * total)[:, None]
        raw_positive = _block(positive, group, row, queries, features, positive_g, positive_n, positive_d, BLOCK_D)
        raw_positive = raw_positive.to(tl.float32)
        sums -= away * _unit(raw_positive, 1, NORMALIZE)
        if grad_positive is not None:
            grad = -away * q
            if NORMALIZE:
                grad = raw_gradient(grad, raw_positive, 1)
            tl.store(grad_positive + target, grad, mask=inside)
    if grad_query is not None:
        if NORMALIZE:
            sums = raw_gradient(sums, raw_query, 1)
        tl.store(grad_query + target, sums, mask=inside)


@kernel
def _scatter_gradient(
    query, bank, order, starts, weights, grad_bank, queries, rows, features, k,
    query_g, query_n, query_d, bank_g, bank_n, bank_d,
    NORMALIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """grad_j = sum of weights[e] unit(query of e) over the entries e = order[starts[j] : starts[j + 1]] that name j."""
    blocks = tl.cdiv(rows, BLOCK_M)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    start = tl.load(starts + group * (rows + 1) + row, mask=row < rows, other=0)
    stop = tl.load(starts + group * (rows + 1) + row + 1, mask=row < rows, other=0)
    sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in range(0, tl.max(stop - start, 0), BLOCK_E):
        slot = (start + first)[:, None] + tl.arange(0, BLOCK_E)[None, :]
        valid = slot < stop[:, None]
        entry = tl.load(order + group * queries * k + slot, mask=valid, other=0)
        w = tl.load(weights + group * queries * k + entry, mask=valid, other=0.0)
        q = _named(query, group, entry // k, valid, features, query_g, query_n, query_d, BLOCK_D)
        sums += tl.sum(w[:, :, None] * _unit(q, 2, NORMALIZE), 1)
    if NORMALIZE:
        raw = _block(bank, group, row, rows, features, bank_g, bank_n, bank_d, BLOCK_D).to(tl.float32)
        sums = raw_gradient(sums, raw, 1)
    inside = (row < rows)[:, None] & (tl.arange(0, BLOCK_D) < features)[None, :]
    tl.store(grad_bank + (group * rows + row)[:, None] * features + tl.arange(0, BLOCK_D)[None, :], sums, mask=inside)


def _blocks(features: int, entries: int) -> dict[str, int]:
    """Sizes of a tile of named rows: about 4096 elements on a GPU; in the interpreter every program is slow."""
    wide = power_of_two(features)
    outer = 16 if INTERPRETED else 1
    inner = min(power_of_two(entries), 64 if INTERPRETED else max(1, min(32, 4096 // wide)))
    return {"outer": outer, "inner": inner, "BLOCK_D": wide}


def info_nce(
    query: Tensor, positive: Tensor, bank: Tensor, index: Tensor, temp: float, normalize: bool
) -> tuple[Tensor, Tensor]:
    """(loss, log-sum-exp in float64), both [G, N]."""
    groups, queries, features = query.shape
    k, index = index.shape[2], index.contiguous()
    loss, center, log_sum = (query.new_empty((groups, queries), dtype=torch.float32) for _ in range(3))
    blocks = _blocks(features, k)
    with on_device(query):
        _info_nce[(groups * -(-queries // blocks["outer"]),)](
            query, positive, bank, index, center, log_sum, loss, queries, bank.shape[1], features, k, 1.0 / temp,
            *query.stride(), *positive.stride(), *bank.stride(), NORMALIZE=normalize,
            BLOCK_Q=blocks["outer"], BLOCK_K=blocks["inner"], BLOCK_D=blocks["BLOCK_D"],
            maxnreg=_REGISTERS,
        )  # fmt: skip
    return loss, center.double() / temp + log_sum


def info_nce_gradient(
    grad_loss: Tensor,
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    index: Tensor,
    lse: Tensor,
    temp: float,
    normalize: bool,
    query_gradient: bool,
    positive_gradient: bool,
    bank_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in query and positive [G, N, D] and bank [G, M, D]; [0] where not wanted."""
    center = (lse * temp).float()
    rest = ((lse - center.double() / temp) * LOG2E).float()
    index = index.contiguous()
    weights = query.new_empty(index.shape, dtype=torch.float32) if bank_gradient else None
    terms = (grad_loss / temp).contiguous(), center.contiguous(), rest.contiguous()
    grads = _gather(
        query, positive, bank, index, None, terms, weights, temp, normalize, query_gradient, positive_gradient
    )
    grad_bank = query.new_empty(0, dtype=torch.float32)
    if weights is not None:
        grad_bank = _scatter(weights, query, bank, index, normalize)
    return *grads, grad_bank


def selection_gradient(
    grad_similarity: Tensor,
    query: Tensor,
    bank: Tensor,
    index: Tensor,
    normalize: bool,
    query_gradient: bool,
    bank_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of named similarities in query [G, N, D] and bank [G, M, D]; [0] where not wanted."""
    grad_similarity, index = grad_similarity.contiguous(), index.contiguous()
    grad_query = grad_bank = query.new_empty(0, dtype=torch.float32)
    if query_gradient:
        nothing = None, None, None
        grad_query, _ = _gather(query, query, bank, index, grad_similarity, nothing, None, 1.0, normalize, True, False)
    if bank_gradient:
        grad_bank = _scatter(grad_similarity, query, bank, index, normalize)
    return grad_query, grad_bank


def _gather(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    index: Tensor,
    given: Tensor | None,
    terms: tuple[Tensor | None, ...],
    weights: Tensor | None,
    temp: float,
    normalize: bool,
    query_gradient: bool,
    positive_gradient: bool,
) -> tuple[Tensor, Tensor]:
    groups, queries, features = query.shape
    k = index.shape[2]
    grad_query = torch.empty(query.shape if query_gradient else 0, dtype=torch.float32, device=query.device)
    grad_positive = torch.empty(positive.shape if positive_gradient else 0, dtype=torch.float32, device=query.device)
    blocks = _blocks(features, k)
    with on_device(query):
        _gather_gradient[(groups * -(-queries // blocks["outer"]),)](
            query, positive, bank, index, given, *terms, weights,
            grad_query if query_gradient else None, grad_positive if positive_gradient else None,
            queries, bank.shape[1], features, k, 1.0 / temp,
            *query.stride(), *positive.stride(), *bank.stride(), NORMALIZE=normalize,
            BLOCK_Q=blocks["outer"], BLOCK_K=blocks["inner"], BLOCK_D=blocks["BLOCK_D"],
            maxnreg=_REGISTERS,
        )  # fmt: skip
    return grad_query, grad_positive


def _scatter(weights: Tensor, query: Tensor, bank: Tensor, index: Tensor, normalize: bool) -> Tensor:
    groups, queries, features = query.shape
    rows, k = bank.shape[1], index.shape[2]
    named = torch.where((index >= 0) & (index < rows), index, rows).flatten(1)  # entries that count for nobody last
    named, order = named.sort(dim=-1, stable=True)
    borders = torch.arange(rows + 1, dtype=torch.int64, device=query.device).expand(groups, -1).contiguous()
    starts = torch.searchsorted(named, borders)
    grad_bank = torch.empty(bank.shape, dtype=torch.float32, device=query.device)
    blocks = _blocks(features, max(1, queries * k // rows))
    with on_device(query):
        _scatter_gradient[(groups * -(-rows // blocks["outer"]),)](
            query, bank, order, starts, weights, grad_bank, queries, rows, features, k,
            *query.stride(), *bank.stride(), NORMALIZE=normalize,
            BLOCK_M=blocks["outer"], BLOCK_E=blocks["inner"], BLOCK_D=blocks["BLOCK_D"],
            maxnreg=_REGISTERS,
        )  # fmt: skip
    return grad_bank
