"""InfoNCE of queries against their positives and every row of a divided bank."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from ..dtypes import working_dtype
from ..operators.info_nce import loss_of
from ..operators.shapes import reduce
from .bank import ShardedMemoryBank
from .log_sum_exp import lse_of
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
    lse = lse_of("info_nce", query, positive, bank, None, temp, positive_in_bank, reduction, normalize, chunk, group)
    rows = bank.rows if isinstance(bank, ShardedMemoryBank) else bank
    loss = loss_of(lse, query, positive, temp, positive_in_bank, normalize, working_dtype(query, positive, rows))
    return reduce(loss, reduction, 2)
