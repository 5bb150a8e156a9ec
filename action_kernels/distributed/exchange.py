"""Rows that travel between processes, where everyone knows how many: all of them to everybody, or each to its owner.

They travel as bytes, several columns side by side in one collective: not every backend of PyTorch's knows all dtypes,
nor gathers uneven parts, which are padded here to the longest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

# Its newer name, where PyTorch has it: there the older one warns.
ALL_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"


def all_gather(output: Tensor, own: Tensor, group: dist.ProcessGroup | None) -> None:
    """Fill ``output`` with what every process has for its own, in the order of the ranks; the same size on each."""
    getattr(dist, ALL_GATHER)(output, own, group=group)


def gather(columns: Sequence[Tensor], counts: Sequence[int], group: dist.ProcessGroup | None) -> list[Tensor]:
    """The rows of all processes in the order of their ranks, the same bits on each.

    Args:
        columns: [own count, ...] each; dtypes and further sizes are the same on all processes.
        counts: rows of every process.
        group: the processes.
    """
    packed = _packed(columns)
    longest = max(counts)
    padded = packed.new_zeros((longest, packed.shape[1]), dtype=torch.uint8)
    padded[: len(packed)] = packed
    parts = packed.new_empty((len(counts), *padded.shape), dtype=torch.uint8)
    all_gather(parts.view(-1), padded.view(-1), group)
    return _unpacked(torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]), columns)


def exchange(
    columns: Sequence[Tensor], sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup | None
) -> list[Tensor]:
    """The rows that other processes have for this one, in the order of their ranks.

    Args:
        columns: [sum of sent, ...] each, the rows for rank 0 first.
        sent: rows for every process.
        received: rows from every process.
        group: the processes.
    """
    packed = _packed(columns)
    arrived = packed.new_empty((sum(received), packed.shape[1]), dtype=torch.uint8)
    width = packed.shape[1]
    dist.all_to_all_single(
        arrived.view(-1),
        packed.view(-1),
        [width * count for count in received],
        [width * count for count in sent],
        group=group,
    )
    return _unpacked(arrived, columns)


def _packed(columns: Sequence[Tensor]) -> Tensor:
    """Columns of the same length side by side, as bytes [rows, bytes of a row]."""
    dense = (torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x.detach()) for x in columns)  # any strides
    return torch.cat([x.view(len(x), math.prod(x.shape[1:])).view(torch.uint8) for x in dense], dim=1)


def _unpacked(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The columns again, of any number of rows."""
    found, start = [], 0
    for x in like:
        width = math.prod(x.shape[1:]) * x.element_size()
        # A copy in any case: memory of its own begins where any dtype may.
        column = packed[:, start : start + width].clone(memory_format=torch.contiguous_format).view(-1)
        found.append(column.view(x.dtype).view(len(packed), *x.shape[1:]))
        start += width
    return found
