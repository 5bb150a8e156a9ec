"""The masked top-k of similarities, and its gradient."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from .bank_pass import bank_pass
from .finish_and_collect import finish_and_collect
from .indexed_rows import REGISTERS, bank_gradient, block_rows, index_entries, measured_rows, tile_sizes
from .launch import kernel, on_device
from .merge_and_limit import merge_and_limit
from .rows import prepare_all, raw_gradient, rows_dtype
from .search import Search
from .tiles import bank_pass_tile, selection_tile
from .verdicts import verdicts


def hard_negatives(
    query: Tensor,
    bank: Tensor,
    k: int,
    query_labels: Tensor | None,
    bank_labels: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    kind = query.shape[2], rows_dtype(normalize, query, bank), query.device
    tile = bank_pass_tile(*kind, sums=False)
    search = Search(k, query, bank, query_labels, bank_labels, normalize, tile, selection_tile(*kind))
    query_rows, bank_rows = prepare_all(
        normalize, query, bank, placement=search.placement, labels=search.labels, measured=search.measured
    )
    if search.by_limits:
        _, maxima = bank_pass(query_rows, None, bank_rows, tile, search=search)
        merge_and_limit(None, maxima, query_rows, None, bank_rows, search=search)
        del maxima  # their memory is there again for the verdicts
        verdicts(query_rows, bank_rows, tile, search)
        finish_and_collect(None, query, normalize, query_rows, bank_rows, search)
    return search.result(query_rows, bank_rows)


@kernel
def _query_grad(
    query,
    bank,
    index,
    weights,
    query_grad,
    queries,
    rows,
    features,
    k,
    query_g,
    query_n,
    query_d,
    bank_g,
    bank_n,
    bank_d,
    NORMALIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """grad_i = sum of weights[i, e] unit(bank row that entry e names)."""
    blocks = tl.cdiv(queries, BLOCK_Q)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    line = group * queries + row
    inside = (row < queries)[:, None] & (tl.arange(0, BLOCK_D) < features)[None, :]
    sums = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for first in range(0, k, BLOCK_K):
        named, valid, _ = index_entries(index, line, row < queries, first, k, rows, BLOCK_K)
        b, to_unit = measured_rows(bank, group, named, valid, features, bank_g, bank_n, bank_d, NORMALIZE, BLOCK_D)
        entry = line[:, None] * k + first + tl.arange(0, BLOCK_K)[None, :]
        w = tl.load(weights + entry, mask=valid, other=0.0)
        sums += tl.sum((w * to_unit)[:, :, None] * b, 1)
    if NORMALIZE:
        raw_query = block_rows(query, group, row, queries, features, query_g, query_n, query_d, BLOCK_D)
        sums = raw_gradient(sums, raw_query.to(tl.float32), 1)
    target = line[:, None] * features + tl.arange(0, BLOCK_D)[None, :]
    tl.store(query_grad + target, sums, mask=inside)


def hard_negatives_gradient(
    grad_similarity: Tensor,
    query: Tensor,
    bank: Tensor,
    index: Tensor,
    normalize: bool,
    with_query_grad: bool,
    with_bank_grad: bool,
) -> tuple[Tensor, Tensor]:
    grad_similarity, index = grad_similarity.contiguous(), index.contiguous()
    query_grad = torch.empty(query.shape if with_query_grad else 0, dtype=torch.float32, device=query.device)
    bank_grad = torch.empty(0, dtype=torch.float32, device=query.device)
    if with_query_grad:
        groups, queries, features = query.shape
        k = index.shape[2]
        sizes = tile_sizes(features, k)
        with on_device(query):
            _query_grad[(groups * -(-queries // sizes["outer"]),)](
                query,
                bank,
                index,
                grad_similarity,
                query_grad,
                queries,
                bank.shape[1],
                features,
                k,
                *query.stride(),
                *bank.stride(),
                NORMALIZE=normalize,
                BLOCK_Q=sizes["outer"],
                BLOCK_K=sizes["inner"],
                BLOCK_D=sizes["BLOCK_D"],
                num_warps=sizes["num_warps"],
                maxnreg=REGISTERS,
            )
    if with_bank_grad:
        bank_grad = bank_gradient(grad_similarity, query, bank, index, normalize)
    return query_grad, bank_grad
