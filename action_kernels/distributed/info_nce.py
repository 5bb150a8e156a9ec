"""InfoNCE of queries against their positives and every row of a divided bank."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from ..dtypes import working_dtype
from ..operators.info_nce import loss_of
from ..operators.shapes import reduce
from .bank import ShardedMemoryBank
from .log_sum_exp import lse_of, requested
from .trips import CHUNK


def info_nce(
    query: Tensor,
    positive: Tensor,
    bank: ShardedMemoryBank | Tensor,
    *,
    temp: float = 0.1,
    positive_in_bank: bool = False,
    reduction: str = "mean",
    normalize: bool = True,
    chunk: int = CHUNK,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """:func:`action_kernels.info_nce` of this process's queries over a bank that all processes share.

    A collective call; gradients in queries and positives need no other process, that in the bank is collective.
    ``positive`` is [N, D] of this process, differentiable; other arguments and errors are those of
    :func:`~action_kernels.distributed.action_contrast`.
    """
    request = requested(
        "info_nce", query, positive, bank, None, temp, positive_in_bank, reduction, normalize, chunk, group
    )
    dtype = working_dtype(query, positive, request.settings.shard.rows)
    loss = loss_of(lse_of(query, None, request), query, positive, temp, positive_in_bank, normalize, dtype)
    return reduce(loss, reduction, 2)
