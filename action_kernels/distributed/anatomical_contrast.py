"""InfoNCE of queries against their positives and the slots of a divided bank that an index names."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from .. import operators
from ..backends import pinned
from ..dtypes import working_dtype
from ..operators.info_nce import loss_of
from ..operators.shapes import reduce
from .bank import ShardedMemoryBank
from .log_sum_exp import lse_of, requested
from .trips import CHUNK


def anatomical_contrast(
    query: Tensor,
    positive: Tensor,
    bank: ShardedMemoryBank | Tensor,
    index: Tensor,
    *,
    temp: float = 0.5,
    reduction: str = "mean",
    normalize: bool = True,
    chunk: int = CHUNK,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """:func:`action_kernels.anatomical_contrast` of this process's queries over a bank that all processes share.

    A collective call; gradients in queries and positives need no other process, that in the bank is collective. Every
    process reads the rows that it holds in place; the positive stays at home, and counts once.

    Args:
        query: [N, D] of this process, differentiable; any N, 0 too, and another one on every process.
        positive: [N, D], differentiable.
        bank: the shared bank, or this process's part, [m, D].
        index: [N, k] integers, slots of the whole bank; entries that are no slot, in particular -1, are skipped.
        temp: temperature, a number > 0.
        reduction: ``"none"``, or ``"mean"`` or ``"sum"`` over the queries of this process.
        normalize: scale every row to unit length first.
        chunk: queries of all processes together that visit at once.
        group: the processes; none: those of the bank, or all.

    Returns:
        The loss; zero, with a graph, for a query without negatives and where there are no queries.

    Raises:
        ValueError: as :func:`~action_kernels.distributed.action_contrast`, on every process.
    """
    request = requested(
        "anatomical_contrast", query, positive, bank, index, temp, False, reduction, normalize, chunk, group
    )
    rows = request.settings.shard.rows
    if request.whole and positive.dtype in (query.dtype, rows.dtype):  # then the backend takes the positives, too
        with pinned(request.backend):
            return operators.anatomical_contrast(
                query, positive, rows, index, temp=temp, reduction=reduction, normalize=normalize
            )
    dtype = working_dtype(query, positive, rows)
    loss = loss_of(lse_of(query, index, request), query, positive, temp, False, normalize, dtype)
    return reduce(loss, reduction, 2)
