"""Bank rows that an index names, and the gradient of the bank as sums over the entries that name a row.

Rows are read in place from strided tensors, a tile [BLOCK_Q, BLOCK_K, D] at a time, and brought to unit length there.
The entries are sorted by row, and each row's are added in the order of the queries.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gpu import sorted_entries
from .launch import INTERPRETED, kernel, on_device, power_of_two
from .rows import SMALLEST_NORM, raw_gradient, unit_factor

HUGE = tl.constexpr(1e30)  # squares of a row, that is
REGISTERS = 168  # per thread; without a limit the assembler aims at fewer, and spills for it


@triton.jit
def unit(x, AXIS: tl.constexpr, NORMALIZE: tl.constexpr):
    x = x.to(tl.float32)
    if NORMALIZE:
        factor, _ = unit_factor(x, AXIS)
        x *= tl.expand_dims(factor, AXIS)
    return x


@triton.jit
def block_rows(x, group, row, rows, features, stride_g, stride_n, stride_d, BLOCK_D: tl.constexpr):
    """Raw rows [BLOCK, BLOCK_D]; zeros outside."""
    column = tl.arange(0, BLOCK_D)
    offset = group * stride_g + row[:, None] * stride_n + column[None, :].to(tl.int64) * stride_d
    return tl.load(x + offset, mask=(row < rows)[:, None] & (column < features)[None, :], other=0.0)


@triton.jit
def indexed_rows(x, group, row, valid, features, stride_g, stride_n, stride_d, BLOCK_D: tl.constexpr):
    """Raw rows [.., .., BLOCK_D] by number; zeros where not valid."""
    column = tl.arange(0, BLOCK_D)
    offset = group * stride_g + row[:, :, None] * stride_n + column[None, None, :].to(tl.int64) * stride_d
    return tl.load(x + offset, mask=valid[:, :, None] & (column < features)[None, None, :], other=0.0)


@triton.jit
def measured_rows(
    x, group, row, valid, features, stride_g, stride_n, stride_d, NORMALIZE: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Rows [.., .., BLOCK_D] by number in float32, and the factors [.., ..] that bring them to unit length.

    A product or a sum takes the factor once for a row, not for every feature. Rows whose squares overflow are smaller.
    """
    found = indexed_rows(x, group, row, valid, features, stride_g, stride_n, stride_d, BLOCK_D).to(tl.float32)
    factor = tl.full(row.shape, 1.0, tl.float32)
    if NORMALIZE:
        squares = tl.sum(found * found, 2)
        if tl.max(tl.max(squares, 1), 0) > HUGE:
            found *= tl.where(squares > HUGE, 2.0**-80, 1.0)[:, :, None]
            squares = tl.sum(found * found, 2)
        norm = tl.sqrt_rn(squares)
        factor = tl.div_rn(factor, tl.where(norm <= SMALLEST_NORM, SMALLEST_NORM, norm))  # of NaN it is NaN
    return found, factor


@triton.jit
def index_entries(index, line, valid_line, first, k, rows, BLOCK_K: tl.constexpr):
    """Entries first... of the index of each line, and which of them name a row; others are 0."""
    slot = first + tl.arange(0, BLOCK_K)
    inside = valid_line[:, None] & (slot < k)[None, :]
    named = tl.load(index + line[:, None] * k + slot[None, :], mask=inside, other=-1)
    valid = (named >= 0) & (named < rows)
    return tl.where(valid, named, 0), valid, inside


@kernel
def _indexed_bank_grad(
    query,
    bank,
    order,
    starts,
    weights,
    bank_grad,
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
    BLOCK_M: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
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
        q, to_unit = measured_rows(
            query, group, entry // k, valid, features, query_g, query_n, query_d, NORMALIZE, BLOCK_D
        )
        sums += tl.sum((w * to_unit)[:, :, None] * q, 1)
    if NORMALIZE:
        raw = block_rows(bank, group, row, rows, features, bank_g, bank_n, bank_d, BLOCK_D).to(tl.float32)
        sums = raw_gradient(sums, raw, 1)
    inside = (row < rows)[:, None] & (tl.arange(0, BLOCK_D) < features)[None, :]
    tl.store(bank_grad + (group * rows + row)[:, None] * features + tl.arange(0, BLOCK_D)[None, :], sums, mask=inside)


def tile_sizes(features: int, entries: int, elements: int = 2048) -> dict[str, int]:
    """Sizes of a tile of so many elements of indexed rows, and its warps; in the interpreter every program is slow.

    A warp takes rows of up to 512 features whole: it sums over them without others.
    """
    wide = power_of_two(features)
    warps = max(1, min(16, wide // 512))
    outer = 16 if INTERPRETED else 1
    inner = min(power_of_two(entries), 64 if INTERPRETED else max(1, min(32, elements // wide)))
    return {"outer": outer, "inner": inner, "BLOCK_D": wide, "num_warps": warps}


def bank_gradient(weights: Tensor, query: Tensor, bank: Tensor, index: Tensor, normalize: bool) -> Tensor:
    """Gradient [G, M, D] in the raw bank rows of the indexed similarities' sum with ``weights`` [G, N, k]."""
    groups, queries, features = query.shape
    rows, k = bank.shape[1], index.shape[2]
    order, starts = sorted_entries(index, rows)
    result = torch.empty(bank.shape, dtype=torch.float32, device=query.device)
    sizes = tile_sizes(features, max(1, queries * k // rows))
    with on_device(query):
        _indexed_bank_grad[(groups * -(-rows // sizes["outer"]),)](
            query,
            bank,
            order,
            starts,
            weights,
            result,
            queries,
            rows,
            features,
            k,
            *query.stride(),
            *bank.stride(),
            NORMALIZE=normalize,
            BLOCK_M=sizes["outer"],
            BLOCK_E=sizes["inner"],
            BLOCK_D=sizes["BLOCK_D"],
            num_warps=sizes["num_warps"],
            maxnreg=REGISTERS,
        )
    return result
