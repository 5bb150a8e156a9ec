"""After the second pass, one launch: partial sums become the gradient in the raw rows, verdicts become keys.

Neither reads what the other writes: the first programs do the one, the others the other.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ..gpu import Partial
from .collect import collect_block
from .launch import INTERPRETED, kernel, on_device, power_of_two
from .rows import Rows, finish_block, rows_of_program
from .search import Search


@kernel
def _finish_and_collect(
    finishing,
    partial=None,
    constant=None,
    factor=None,
    raw=None,
    raw_g=None,
    raw_n=None,
    raw_d=None,
    grad=None,
    parts=None,
    raw_rows=None,
    raw_total=None,
    raw_features=None,
    padded=None,
    query=None,
    query_scale=None,
    bank=None,
    bank_scale=None,
    words=None,
    counts=None,
    flags=None,
    total=None,
    queries=None,
    rows=None,
    line=None,
    capacity=None,
    num_splits=None,
    place_tiles=None,
    place_block=None,
    NORMALIZE: tl.constexpr = None,
    BLOCK_N: tl.constexpr = None,
    WIDTH: tl.constexpr = None,
    BLOCK_M: tl.constexpr = None,
    FEATURES: tl.constexpr = None,
    BLOCK_Q: tl.constexpr = None,
    WORDS: tl.constexpr = None,
    BLOCK_K: tl.constexpr = None,
    BLOCK_D: tl.constexpr = None,
):
    block = tl.program_id(0)
    if block < finishing:
        if partial is not None:
            finish_block(
                block,
                partial,
                constant,
                factor,
                raw,
                raw_g,
                raw_n,
                raw_d,
                grad,
                parts,
                raw_rows,
                raw_total,
                raw_features,
                padded,
                NORMALIZE,
                BLOCK_N,
                WIDTH,
            )
    else:
        if words is not None:
            collect_block(
                block - finishing,
                query,
                query_scale,
                bank,
                bank_scale,
                words,
                counts,
                flags,
                total,
                queries,
                rows,
                line,
                capacity,
                num_splits,
                place_tiles,
                place_block,
                BLOCK_M,
                FEATURES,
                BLOCK_Q,
                WORDS,
                BLOCK_K,
                BLOCK_D,
            )


def finish_and_collect(
    partial: Partial | None,
    raw: Tensor,
    normalize: bool,
    query: Rows | None = None,
    bank: Rows | None = None,
    search: Search | None = None,
) -> Tensor:
    """The gradient [G, rows, D] in raw rows, [0] where there is none; the words of a ``search`` become keys.

    Args:
        partial: the gradient in parts.
        raw: [G, rows, D] as they were before they were prepared.
        normalize: whether rows were brought to unit length.
        query: the queries of the search.
        bank: the bank.
        search: whose verdicts were taken; its flags are set where some did not fit.
    """
    grad = torch.empty(0 if partial is None else raw.shape, dtype=torch.float32, device=raw.device)
    finishing, collecting, warps = 0, 0, 4
    arguments: dict[str, Any] = {}
    if search is not None and search.words is not None and query is not None and bank is not None:
        words = search.words
        groups, queries, features = query.data.shape
        slots = power_of_two(words.num_splits * words.capacity)
        block_d = min(power_of_two(features), 128)
        block_q = min(power_of_two(queries), 64) if INTERPRETED else 1
        collecting = -(-(groups * queries) // block_q)
        warps = 1 if slots < 1024 else 4
        arguments |= {
            "query": query.data,
            "query_scale": query.scale,
            "bank": bank.data,
            "bank_scale": bank.scale,
            "words": words.words,
            "counts": words.counts,
            "flags": search.flags,
            "total": groups * queries,
            "queries": queries,
            "rows": bank.data.shape[1],
            "line": words.line,
            "capacity": words.capacity,
            "num_splits": words.num_splits,
            "place_tiles": search.placement.tiles,
            "place_block": search.placement.block,
            "BLOCK_M": words.block_m,
            "FEATURES": features,
            "BLOCK_Q": block_q,
            "WORDS": slots,
            "BLOCK_K": 64 if INTERPRETED else max(8, 1024 * warps // block_d),
            "BLOCK_D": block_d,
        }
    if partial is not None:
        parts, groups, rows, padded = partial.sums.shape
        width = power_of_two(padded)
        block_n = rows_of_program(width, warps)
        finishing = groups * -(-rows // block_n)
        arguments |= {
            "partial": partial.sums,
            "constant": partial.constant,
            "factor": partial.factor,
            "raw": raw,
            "raw_g": raw.stride(0),
            "raw_n": raw.stride(1),
            "raw_d": raw.stride(2),
            "grad": grad,
            "parts": parts,
            "raw_rows": rows,
            "raw_total": groups * rows,
            "raw_features": raw.shape[2],
            "padded": padded,
            "NORMALIZE": normalize,
            "BLOCK_N": block_n,
            "WIDTH": width,
        }
    if finishing + collecting:
        with on_device(raw):
            _finish_and_collect[(finishing + collecting,)](finishing, **arguments, num_warps=warps)
    return grad
