"""Rows of all processes on each of them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..dtypes import INTEGER


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
        Rows [sum of N, D] and their labels, detached; a process group of one gives back what it was given.

    Raises:
        ValueError: a shape or dtype does not fit, here or between the processes. Every process raises then, so none is
            left waiting.
    """
    problem = _problem(rows, labels)
    kind = [0] * 4 if problem else [*rows.shape, rows.element_size(), int(labels is not None)]
    ours = torch.tensor([*kind, int(problem is not None)], dtype=torch.int64, device=rows.device)
    world = dist.get_world_size(group)
    counted = torch.empty((world, len(ours)), dtype=torch.int64, device=rows.device)
    dist.all_gather_into_tensor(counted.view(-1), ours, group=group)
    table = counted.tolist()
    if problem:
        raise ValueError(problem)
    for rank, theirs in enumerate(table):
        if theirs[-1]:
            raise ValueError(f"rank {rank} was given rows that do not fit: its own message says why")
        if theirs[1:] != table[0][1:]:
            raise ValueError(
                f"ranks 0 and {rank} must be given rows alike: features, bytes of a number, and 1 for labels or 0 "
                f"are {table[0][1:-1]} and {theirs[1:-1]}"
            )
    counts = [theirs[0] for theirs in table]
    gathered = _gather(rows, counts, group)
    return gathered, None if labels is None else _gather(labels.to(torch.int64), counts, group)


def _problem(rows: Tensor, labels: Tensor | None) -> str | None:
    """What is wrong with the arguments of this process."""
    if rows.dim() != 2 or not rows.is_floating_point():
        return f"rows must be floating [N, D], got {rows.dtype} of shape {tuple(rows.shape)}"
    if labels is not None and (labels.shape != rows.shape[:1] or labels.dtype not in INTEGER):
        return f"labels must be integers [{len(rows)}], one for each row, got {labels.dtype} {tuple(labels.shape)}"
    return None


def _gather(x: Tensor, counts: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """The entries of all ranks, counted before.

    Padded to the longest, since not every backend of PyTorch's gathers uneven parts; as bytes, since not every one
    knows all dtypes.
    """
    longest = max(counts)
    padded = x.new_zeros((longest, *x.shape[1:]), dtype=x.dtype)
    padded[: len(x)] = x.detach()
    parts = x.new_empty((len(counts) * longest, *x.shape[1:]), dtype=x.dtype)
    dist.all_gather_into_tensor(parts.view(torch.uint8).view(-1), padded.view(torch.uint8).view(-1), group=group)
    split = parts.view(len(counts), longest, *x.shape[1:])
    return torch.cat([part[:count] for part, count in zip(split, counts, strict=True)])
