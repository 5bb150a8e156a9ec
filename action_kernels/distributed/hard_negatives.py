"""The rows of a divided bank that are most similar to each query, among those of another class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .. import operators
from ..backends import pinned
from ..dtypes import working_dtype
from ..operators import arguments
from ..operators.registration import call, keep, once_differentiable
from .agreement import Given, agree
from .bank import ShardedMemoryBank
from .selection import merge_candidates, selection_gradient
from .shard import Shard, backend_for, check_backend, check_chunk, check_rows, group_of, is_whole, shard_of, wants_grad
from .trips import CHUNK, trips


def hard_negatives(
    query: Tensor,
    bank: ShardedMemoryBank | Tensor,
    k: int,
    *,
    query_labels: Tensor | None = None,
    bank_labels: Tensor | None = None,
    normalize: bool = True,
    chunk: int = CHUNK,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`action_kernels.hard_negatives` of this process's queries in a bank that all processes share.

    A collective call, and so is going backward through the similarities. Arguments and errors are those of
    :func:`~action_kernels.distributed.action_contrast`.

    Returns:
        ``(similarity, slots)``, both [N, k], in descending order, ties to the lower slot of the whole bank; -inf and -1
        where no row is left.
    """

    def given() -> Given:
        arguments.check_k(k)
        arguments.check_normalize(normalize)
        check_chunk(chunk)
        shard = shard_of(bank, bank_labels, group, query_labels is not None)
        check_rows(query=query, bank=shard.rows)
        arguments.check_labels("query", query, query_labels, shard.rows, shard.labels)
        check_backend("hard_negatives", query, shard.rows)
        values = (
            *(query.shape[1], query.dtype, shard.rows.dtype, k, query_labels is not None, bool(normalize), chunk),
            *(wants_grad(query), wants_grad(shard.rows)),
        )
        return Given([len(query), len(shard.rows)], dict(zip(_NAMES, values, strict=True)))

    members = group_of(bank, group)
    table = agree("hard_negatives", "queries and banks", _NAMES, given, members, query, bank)
    shard = shard_of(bank, bank_labels, group, query_labels is not None)
    backend = backend_for("hard_negatives", table, chunk, query, shard.rows)
    if is_whole(table, backend):
        known = {"query_labels": query_labels, "bank_labels": shard.labels}
        with pinned(backend):
            return operators.hard_negatives(query, shard.rows, k, **known, normalize=normalize)
    shard = shard._replace(labels=None if shard.labels is None else shard.labels.long())
    labels = None if query_labels is None else query_labels.long()
    settings = Settings(shard, [count for count, _ in table], chunk, k, normalize)
    function: Callable[..., tuple[Tensor, Tensor]] = _HardNegatives.apply
    with pinned(backend):
        return function(query, shard.rows, labels, settings)


_NAMES = (
    *("D", "dtype of query", "dtype of bank", "k", "with labels", "normalize", "chunk"),
    *("gradient in the query", "gradient in the bank"),
)


class Settings(NamedTuple):
    """Of a call, the same on all processes but for the part of the bank."""

    shard: Shard
    counts: list[int]  # queries of every process
    chunk: int
    k: int
    normalize: bool


class _HardNegatives(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, rows: Tensor, query_labels: Tensor | None, settings: Settings
    ) -> tuple[Tensor, Tensor]:
        shard, counts, chunk, k, normalize = settings
        dtype = working_dtype(query, rows)
        similarity = query.new_empty((len(query), k), dtype=dtype)
        slots = torch.empty_like(similarity, dtype=torch.int64)
        for trip in trips(counts, chunk, shard.group):
            visiting, *labels = trip.out(query) if query_labels is None else trip.out(query, query_labels)
            found = torch.full((len(visiting), k), -torch.inf, dtype=dtype, device=query.device)
            places = torch.full_like(found, -1, dtype=torch.int64)
            if len(rows):
                known = (labels[0][None], shard.labels[None]) if shard.labels is not None else (None, None)
                found, places = (x[0] for x in call("hard_negatives", visiting[None], rows[None], k, *known, normalize))
            candidates, candidate_slots = trip.home(found, shard.slots(places))
            similarity[trip.own], slots[trip.own] = merge_candidates(candidates, candidate_slots, k)
        ctx.mark_non_differentiable(slots)
        ctx.settings = settings
        keep(ctx, query, rows, slots)
        return similarity, slots

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_similarity: Tensor | None, _slots: None) -> tuple[Tensor | None, ...]:
        if grad_similarity is None:
            return (None,) * 4
        query, rows, slots = ctx.saved_tensors
        shard, counts, chunk, _, normalize = ctx.settings
        to_query, to_bank = ctx.needs_input_grad[:2]
        of_bank = torch.zeros_like(rows, dtype=working_dtype(query, rows)) if to_bank else None
        of_query = selection_gradient(
            grad_similarity, query, rows, slots, shard, counts, chunk, normalize, to_query, of_bank, ctx.backend
        )
        return (
            None if of_query is None else of_query.to(query.dtype),
            None if of_bank is None else of_bank.to(rows.dtype),
            *(None,) * 2,
        )
