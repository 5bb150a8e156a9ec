"""Rows of all processes on each of them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..dtypes import INTEGER
from ..operators.arguments import check_tensor
from .agreement import Given, agree
from .exchange import gather


@torch.no_grad()
def gather_rows(
    rows: Tensor, labels: Tensor | None = None, *, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor | None]:
    """The rows of all processes, in the order of their ranks: the same bits on each. A collective call.

    Args:
        rows: [N, D] of this process; any N, 0 too, and another one on every process; D and dtype are the same on all.
        labels: [N] integers, on all processes or on none.
        group: processes; none: all of them.

    Returns:
        Rows [sum of N, D] and their labels, int64: detached copies.

    Raises:
        ValueError: a shape or dtype does not fit, here or between the processes. Every process raises then, so none is
            left waiting.
    """

    def given() -> Given:
        for name, x in (("rows", rows), ("labels", labels)):
            if x is not None:
                check_tensor(name, x)
        if rows.dim() != 2 or not rows.is_floating_point():
            raise ValueError(f"rows must be floating [N, D], got {rows.dtype} of shape {tuple(rows.shape)}")
        if labels is not None and (labels.shape != rows.shape[:1] or labels.dtype not in INTEGER):
            raise ValueError(
                f"labels must be integers [{len(rows)}], one for each row, got {labels.dtype} {tuple(labels.shape)}"
            )
        return Given([len(rows)], {"D": rows.shape[1], "dtype": rows.dtype, "with labels": labels is not None})

    table = agree("gather_rows", "rows", ("D", "dtype", "with labels"), given, group, rows)
    counts = [count for count, _ in table]
    columns = [rows] if labels is None else [rows, labels.to(torch.int64)]
    gathered = gather(columns, counts, group)
    return gathered[0], None if labels is None else gathered[1]
