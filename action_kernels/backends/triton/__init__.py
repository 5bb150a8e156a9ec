"""The Triton backend: similarities are taken, used and forgotten in registers, tile by tile.

    rows       lengths, padding, the scale of 16-bit rows; partial sums into gradients of raw rows
    scan       one pass over the bank: both softmaxes' sums, the divergence, the candidates for the selection
    selection  an exact top-k by a buffer of candidates
    statistics the shares' sums into log-sum-exps; what a gradient reads of every query
    gradients  the divergence's gradients in student and bank, one pass each
    gather     InfoNCE and gradients over bank rows that an index names
    tiles      which configuration a kernel runs with; `tuned`: the one that was measured to be the fastest

Working memory: a padded copy of student, teacher and bank in their own dtype, a few floats per query, and for the
selection a buffer per running program. Nothing synchronises with the host; the same input gives the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..interface import ContrastResult, Unusable
from ..reference import relation_negatives  # integer arithmetic over N x k, in a few PyTorch kernels
from . import release

if reason := release.problem():  # said before an older Triton fails in words of its own
    raise Unusable(reason)

from . import gather, gradients
from .launch import INTERPRETED
from .rows import Rows, prepare
from .scan import scan
from .selection import in_order
from .tiles import bank_tile, direction_tile, scan_tile, width

__all__ = [
    "action_contrast",
    "anatomical_contrast",
    "anatomical_contrast_gradient",
    "contrast_bank_gradient",
    "hard_negatives",
    "relation_negatives",
    "selection_gradient",
    "supports",
    "unavailable",
]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def unavailable() -> str | None:
    """Why this backend cannot run here, or None."""
    if INTERPRETED or torch.cuda.is_available():
        return None
    return "PyTorch finds no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, for tests)"


def supports(device_type: str, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Why this backend does not take these tensors, or None."""
    if device_type != "cuda" and not (INTERPRETED and device_type == "cpu"):
        return f"takes CUDA tensors, not {device_type}"
    for dtype in dtypes:
        if dtype not in _DTYPES:
            return f"takes float32, float16 and bfloat16, not {dtype}"
    return None


def action_contrast(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    k: int,
    student_temp: float,
    teacher_temp: float,
    query_labels: Tensor | None,
    bank_labels: Tensor | None,
    normalize: bool,
    direction: bool,
) -> ContrastResult:
    rows = _prepare(normalize, student, teacher, bank)
    kind = student.shape[2], rows[0].data.dtype, student.device
    tile = scan_tile(*kind, selects=k > 0)
    kl, student_lse, teacher_lse, keys = scan(*rows, tile, k, student_temp, teacher_temp, query_labels, bank_labels)
    if direction:
        tile = direction_tile(*kind)
        slope = gradients.direction(
            *rows, tile, student, student_lse, teacher_lse, student_temp, teacher_temp, normalize
        )
    else:
        slope = student.new_empty(0, dtype=torch.float32)
    if keys is None:
        similarity, index = (student.new_empty((*kl.shape, 0), dtype=d) for d in (torch.float32, torch.int64))
    else:
        similarity, index = in_order(keys, k)
    return ContrastResult(kl, student_lse, teacher_lse, slope, similarity, index)


def contrast_bank_gradient(
    grad_kl: Tensor,
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    kl: Tensor,
    student_lse: Tensor,
    teacher_lse: Tensor,
    student_temp: float,
    teacher_temp: float,
    normalize: bool,
) -> Tensor:
    rows = _prepare(normalize, student, teacher, bank)
    tile = bank_tile(bank.shape[2], rows[0].data.dtype, bank.device)
    return gradients.bank_gradient(
        grad_kl, *rows, tile, bank, kl, student_lse, teacher_lse, student_temp, teacher_temp, normalize
    )


def hard_negatives(
    query: Tensor,
    bank: Tensor,
    k: int,
    query_labels: Tensor | None,
    bank_labels: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    query_rows, bank_rows = _prepare(normalize, query, bank)
    tile = scan_tile(query.shape[2], query_rows.data.dtype, query.device, selects=True)
    keys = scan(query_rows, None, bank_rows, tile, k, query_labels=query_labels, bank_labels=bank_labels).keys
    return in_order(keys, k)


selection_gradient = gather.selection_gradient
anatomical_contrast = gather.info_nce
anatomical_contrast_gradient = gather.info_nce_gradient


def _prepare(normalize: bool, *tensors: Tensor) -> list[Rows]:
    """All in one dtype for the products: their own if they share it, otherwise float32."""
    dtype = tensors[0].dtype if len({x.dtype for x in tensors}) == 1 else torch.float32
    return [prepare(x, dtype, width(x.shape[2], dtype), normalize) for x in tensors]
