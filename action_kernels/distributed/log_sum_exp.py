"""The log-sum-exp of a query's similarities to a divided bank, or to the rows of it that an index names.

The parts' log-sum-exps merge, and so do their gradients, each a mean of bank rows under the part's own softmax: weighed
by the part's share of the whole sum, they are the whole one's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .. import operators
from ..backends import chosen, pinned
from ..backends.reference.rows import raw_gradient
from ..dtypes import working_dtype
from ..operators import arguments
from ..operators.registration import call, keep, once_differentiable
from ..unit_rows import unit
from .agreement import Given, agree
from .bank import ShardedMemoryBank
from .shard import (
    Shard,
    backend_for,
    check_backend,
    check_chunk,
    check_rows,
    constant,
    group_of,
    is_whole,
    shard_of,
    wants_grad,
)
from .trips import CHUNK, summed, trips


def log_sum_exp(
    query: Tensor,
    bank: ShardedMemoryBank | Tensor,
    *,
    temp: float = 0.1,
    normalize: bool = True,
    chunk: int = CHUNK,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """:func:`action_kernels.log_sum_exp` of this process's queries over a bank that all processes share.

    A collective call; the gradient in the queries needs no other process, that in the bank is collective. Arguments and
    errors are those of :func:`~action_kernels.distributed.action_contrast`.

    Returns:
        [N] float64; -inf, with a graph, where no process has a row.
    """
    request = requested("log_sum_exp", query, None, bank, None, temp, False, "none", normalize, chunk, group)
    return lse_of(query, None, request)


class Settings(NamedTuple):
    """Of a call, the same on all processes but for the part of the bank."""

    shard: Shard
    counts: list[int]  # queries of every process
    chunk: int
    temp: float
    normalize: bool
    query_grad: bool  # whether it is wanted


class Request(NamedTuple):
    """One that all processes make, with arguments that fit."""

    settings: Settings
    backend: str  # of all that runs
    whole: bool  # one process has all rows: the operator for a whole bank does all in one pass


_NAMES = (
    *("D", "dtype of query", "dtype of bank", "columns of index", "temp", "normalize", "positive_in_bank", "chunk"),
    *("gradient in the query", "gradient in the bank"),
)


def requested(
    call_name: str,
    query: Tensor,
    positive: Tensor | None,
    bank: ShardedMemoryBank | Tensor,
    index: Tensor | None,
    temp: float,
    positive_in_bank: bool,
    reduction: str,
    normalize: bool,
    chunk: int,
    group: dist.ProcessGroup | None,
) -> Request:
    """Check the arguments of a loss that begins with the log-sum-exp, on all processes together.

    ``call_name`` is the operator that the user has called.
    """
    operator = "log_sum_exp" if index is None else "anatomical_contrast"

    def given() -> Given:
        arguments.check_reduction(reduction)
        arguments.check_normalize(normalize)
        check_chunk(chunk)
        shard = shard_of(bank, None, group, False)
        check_rows(query=query, bank=shard.rows, **({} if positive is None else {"positive": positive}))
        if positive is not None and positive.shape != query.shape:
            raise ValueError(
                f"positive must have the shape of query, got {tuple(positive.shape)} and {tuple(query.shape)}"
            )
        constant("temp", temp, query)
        if index is not None:
            arguments.check_integer("index", index)
            arguments.check_device(query=query, index=index)
            if index.dim() != 2 or len(index) != len(query):
                raise ValueError(
                    f"index must be [N, k] for a query of shape {tuple(query.shape)}, got {tuple(index.shape)}"
                )
        check_backend(operator, query, shard.rows)
        values = (
            *(query.shape[1], query.dtype, shard.rows.dtype, -1 if index is None else index.shape[1], float(temp)),
            *(bool(normalize), bool(positive_in_bank), chunk, wants_grad(query), wants_grad(shard.rows)),
        )
        return Given([len(query), len(shard.rows)], dict(zip(_NAMES, values, strict=True)))

    members = group_of(bank, group)
    table = agree(call_name, "queries and banks", _NAMES, given, members, query, bank)
    if positive_in_bank and any(count for count, _ in table) and not any(rows for _, rows in table):
        raise ValueError("bank is empty on all processes: positive_in_bank says that it has the positives")
    shard = shard_of(bank, None, group, False)
    backend = backend_for(operator, table, chunk, query, shard.rows)
    counts = [count for count, _ in table]
    settings = Settings(shard, counts, chunk, float(temp), normalize, wants_grad(query))
    return Request(settings, backend, is_whole(table, backend))


def lse_of(query: Tensor, index: Tensor | None, request: Request) -> Tensor:
    """The log-sum-exp over all rows, or over the slots that ``index`` names."""
    settings, rows = request.settings, request.settings.shard.rows
    function: Callable[..., Tensor] = _LogSumExp.apply
    with pinned(request.backend):
        if request.whole and index is None:
            return operators.log_sum_exp(query, rows, temp=settings.temp, normalize=settings.normalize)
        return function(query, rows, None if index is None else index.long(), settings)


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, rows: Tensor, index: Tensor | None, settings: Settings) -> Tensor:
        lse = query.new_empty(len(query), dtype=torch.float64)
        query_grad = torch.empty_like(query, dtype=working_dtype(query, rows)) if settings.query_grad else None
        for trip in trips(settings.counts, settings.chunk, settings.shard.group):
            visiting = trip.out(query) if index is None else trip.out(query, index)
            part_lse, *gradients = trip.home(*_part(*visiting, settings=settings))
            lse[trip.own] = whole = part_lse.logsumexp(dim=0)
            if query_grad is not None:
                # Of no row at all both are -inf.
                share = torch.where(part_lse == -torch.inf, 0.0, (part_lse - whole).exp()).unsqueeze(-1)
                query_grad[trip.own] = summed(share * gradients[0])
        ctx.settings = settings
        ctx.dtypes = query.dtype, rows.dtype
        again = (query, rows, index, lse) if ctx.needs_input_grad[1] else (None,) * 4
        keep(ctx, *again, query_grad)
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_lse is None:
            return (None,) * 4
        query, rows, index, lse, query_grad = ctx.saved_tensors
        to_query, to_bank = ctx.needs_input_grad[:2]
        query_dtype, bank_dtype = ctx.dtypes
        of_query = of_bank = None
        if to_query:
            of_query = (grad_lse.to(query_grad.dtype).unsqueeze(-1) * query_grad).to(query_dtype)
        if to_bank:
            of_bank = _bank_gradient(grad_lse, query, rows, index, lse, ctx.settings, ctx.backend).to(bank_dtype)
        return of_query, of_bank, None, None


def _part(query: Tensor, index: Tensor | None = None, *, settings: Settings) -> tuple[Tensor, ...]:
    """What visiting queries find in this part: the log-sum-exp, and its gradient where that is wanted."""
    shard, wanted = settings.shard, settings.query_grad
    rows, temp, normalize = shard.rows, settings.temp, settings.normalize
    if not len(rows) or (index is not None and not index.shape[1]):
        lse = torch.full((len(query),), -torch.inf, dtype=torch.float64, device=query.device)
        return (lse, torch.zeros_like(query, dtype=working_dtype(query, rows))) if wanted else (lse,)
    if index is None:
        found = call("log_sum_exp", query[None], rows[None], temp, normalize, wanted)
        return (found[0][0], found[1][0]) if wanted else (found[0][0],)
    return _named(query, rows, shard.places(index), temp, normalize, wanted)


def _named(
    query: Tensor, rows: Tensor, places: Tensor, temp: float, normalize: bool, wanted: bool
) -> tuple[Tensor, ...]:
    """The same over the rows at some places, by the operator that reads them where they lie.

    It takes a positive beside them, which here is the first of the rows.
    """
    number = torch.arange(places.shape[1], dtype=torch.int64, device=places.device)
    first = torch.where(places >= 0, number, places.shape[1] - 1).amin(dim=1, keepdim=True)
    place = places.gather(1, first).clamp_min(0)[:, 0]
    others = places.scatter(1, first, -1)[None]
    query, positive, bank = query[None], rows[place][None], rows[None]
    _, lse = call("anatomical_contrast", query, positive, bank, others, temp, normalize)
    found = torch.where((places >= 0).any(dim=1), lse[0], -torch.inf)
    if not wanted:
        return (found,)
    dtype = working_dtype(query, bank)
    once = torch.ones_like(lse, dtype=dtype)
    # Of the loss: the log-sum-exp less the logit of the positive, which is given back.
    less = call(
        "anatomical_contrast_gradient",
        *(once, query, positive, bank, others, lse, temp, normalize, True, False, False, chosen() or ""),
    )[0]
    return found, (less + raw_gradient(unit(positive, normalize, dtype) / temp, query, normalize))[0]


def _bank_gradient(
    grad_lse: Tensor,
    query: Tensor,
    rows: Tensor,
    index: Tensor | None,
    lse: Tensor,
    settings: Settings,
    backend: str,
) -> Tensor:
    """The gradient in the rows of this part of all processes' log-sum-exps."""
    dtype = working_dtype(query, rows)
    total = torch.zeros_like(rows, dtype=dtype)
    temp, normalize = settings.temp, settings.normalize
    columns = [query, grad_lse, lse] if index is None else [query, grad_lse, lse, index]
    for trip in trips(settings.counts, settings.chunk, settings.shard.group):
        visiting, *others = (x[None] for x in trip.out(*columns))
        if not len(rows) or (index is not None and not index.shape[1]):
            continue
        if index is None:
            upstream, whole = others
            found = call("log_sum_exp_bank_gradient", upstream, visiting, rows[None], whole, temp, normalize, backend)
        else:
            upstream, whole, named = others
            # Given the log-sum-exp, the positive has no part in the rows' gradient: any row will do.
            found = call(
                "anatomical_contrast_gradient",
                *(upstream.to(dtype), visiting, visiting, rows[None], settings.shard.places(named), whole),
                *(temp, normalize, False, False, True, backend),
            )[2]
        total += found[0]
        del found  # before the next one is there
    return total
