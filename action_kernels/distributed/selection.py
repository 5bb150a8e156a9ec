"""Similarities to the best rows of a divided bank: merged from the parts, and their gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dtypes import working_dtype
from ..operators.registration import call
from .merge import merge_selection
from .shard import Shard
from .trips import summed, trips


def merge_candidates(similarity: Tensor, slots: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best of what the parts have found, both [parts, N, k]."""
    similarity, slots = (x.transpose(0, 1).flatten(1) for x in (similarity, slots))
    return merge_selection(similarity, slots, k)


def selection_gradient(
    grad_similarity: Tensor,
    query: Tensor,
    rows: Tensor,
    slots: Tensor,
    shard: Shard,
    counts: Sequence[int],
    chunk: int,
    normalize: bool,
    to_query: bool,
    bank_grad: Tensor | None,
    backend: str,
) -> Tensor | None:
    """The gradient in this process's queries, where it is wanted. A collective call.

    That in the rows of its part is added to ``bank_grad``, where it is wanted: a part has room for few of its size.
    """
    dtype = working_dtype(query, rows)
    query_grad = torch.empty_like(query, dtype=dtype) if to_query else None
    for trip in trips(counts, chunk, shard.group):
        grad, visiting, named = trip.out(grad_similarity, query, slots)
        partial = torch.zeros_like(visiting, dtype=dtype)
        if len(rows):
            of_query, of_bank = call(
                "hard_negatives_gradient",
                *(grad[None], visiting[None], rows[None], shard.places(named)[None]),
                *(normalize, to_query, bank_grad is not None, backend),
            )
            if to_query:
                partial = of_query[0]
            if bank_grad is not None:
                bank_grad += of_bank[0]
            del of_bank  # before the next one is there
        if query_grad is not None:
            query_grad[trip.own] = summed(trip.home(partial)[0])
    return query_grad
