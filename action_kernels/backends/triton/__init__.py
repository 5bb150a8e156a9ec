"""The Triton backend: streaming kernels in which similarities never leave the registers.

    rows          preparing rows for the products, and gradients in them for the raw rows
    bank_pass     the first pass over the bank: softmaxes, the divergence, the best row of each group
    merge_and_limit    in between: `statistics` from the sums, `thresholds` from the best rows
    student_gradient, verdicts    the second pass, with the gradient or without: which rows reach limits, as `words`
    finish_and_collect    afterwards: gradients in the raw rows, and the similarities of those that reach (`collect`)
    buffered      what limits cannot select, by a buffer of candidates; `selection` fills and clears it
    order         the k best in order
    bank_gradient    a gradient in the whole bank
    search        a selection from start to end; `labels`, `placement`: of the bank's rows on the way
    indexed_rows  bank rows that an index names, and sums over them
    products      products of tiles
    tiles         which configuration a kernel runs with; `tuned`: the one that was measured to be the fastest
    launch        where kernels run

Forward, an operator is five launches, or seven with a selection: rows, pass, between, pass, after; buffer, order.

Working memory: a padded copy of student, teacher and bank in their own dtype, a few floats per query, and for the
selection the group maxima, then a line of about 2 k words per query and a buffer per running program. Nothing
synchronises with the host; the same input gives the same bits.
"""

from __future__ import annotations

import torch

from ..interface import Unusable, unsupported
from . import release

if reason := release.problem():  # before an older Triton fails with a message of its own
    raise Unusable(reason)

from .launch import INTERPRETED


def unavailable() -> str | None:
    """Why this backend cannot run here, or None."""
    if INTERPRETED or torch.cuda.is_available():
        return None
    return release.NO_DEVICE


def supports(device_type: str, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Why this backend does not take these tensors, or None."""
    return unsupported("cpu" if INTERPRETED and device_type == "cpu" else "cuda", device_type, dtypes)
