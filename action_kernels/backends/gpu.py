"""What the Triton backend decides and does with PyTorch alone, around its kernels.

The setting of tf32 and the sorting of entries are the CUDA backend's, too; the rest is done in ``csrc/cuda`` there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EMPTY = -(2**63)  # key of no candidate


class Partial(NamedTuple):
    """A gradient in parts, times ``constant`` and ``factor``."""

    sums: Tensor  # [parts, G, N, padded D]
    constant: float
    factor: Tensor | None = None  # [1]


def splits(processors: int, blocks: int, length: int, block: int) -> tuple[int, int]:
    """(number of splits, elements in each) of a walk over ``length`` in blocks, so that two programs a processor run.

    Args:
        processors: multiprocessors of the GPU.
        blocks: programs that take the walk together, each for its part of the other side.
        length: elements to walk over, such as bank rows.
        block: elements of a step.

    A split has two blocks or more, where there are so many; none is empty.
    """
    wanted = max(1, min(2 * processors // blocks, length // (2 * block)))
    span = -(-length // (wanted * block)) * block
    return -(-length // span), span


def tf32_allowed() -> bool:
    """Whether float32 products may be rounded to tf32, by PyTorch's own setting for CUDA matrix products."""
    matmul = torch.backends.cuda.matmul
    try:
        return bool(matmul.fp32_precision == "tf32")
    except AttributeError:  # before PyTorch 2.9
        return bool(matmul.allow_tf32)


def product_dtype(*tensors: Tensor) -> torch.dtype:
    """dtype in which rows are multiplied: their own if they share it, otherwise float32."""
    return tensors[0].dtype if len({x.dtype for x in tensors}) == 1 else torch.float32


def boost(normalize: bool) -> float:
    """Factor on weights: scales of unit rows are 1/256 to 1/128; float16 has its finest numbers around 1 to 1000."""
    return 2.0**16 if normalize else 1.0


def sorted_entries(index: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The entries of an index [G, N, k] by the row that they name.

    Returns:
        order: [G, N k] int64 entries, sorted by row and then by place; those that name no row of 0..rows-1 come last.
        starts: [G, rows + 1] int64, where in ``order`` the entries of each row begin.
    """
    named = torch.where((index >= 0) & (index < rows), index, rows).flatten(1)
    named, order = named.sort(dim=-1, stable=True)
    borders = torch.arange(rows + 1, dtype=torch.int64, device=index.device).expand(index.shape[0], -1).contiguous()
    return order, torch.searchsorted(named, borders)


def selection_of(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(similarity, index), both [..., k], of keys in descending order; -inf and -1 behind the last one.

    A key has the bits of a similarity, put into order, above the inverted number of its bank row.
    """
    keys = torch.nn.functional.pad(keys[..., :k], (0, max(0, k - keys.shape[-1])), value=EMPTY)
    empty = keys == EMPTY
    ordered = (keys >> 32).int()
    similarity = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    index = 0xFFFFFFFF - (keys & 0xFFFFFFFF)
    return similarity.masked_fill(empty, -torch.inf), index.masked_fill(empty, -1)
