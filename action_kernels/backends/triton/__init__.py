"""The Triton backend: streaming kernels in which similarities never leave the registers.

    bank_pass     the first pass over the bank: softmaxes, the divergence, the best row of each group
    thresholds    from these what a row has to reach, to be among a query's k best
    student_gradient, verdicts    the second pass, with the gradient or without: which rows do; `words` packs them
    bank_gradient    a gradient in the whole bank
    collect       their similarities, and the k best in order
    buffered      what limits cannot select, by a buffer of candidates; `selection` fills and clears it
    search        a selection from start to end; `labels`, `placement`: of the bank's rows on the way
    statistics    the splits' sums into log-sum-exps; what a gradient reads of every query
    indexed_rows  bank rows that an index names, and sums over them
    rows          preparing rows, finishing gradients
    products      products of tiles
    tiles         which configuration a kernel runs with; `tuned`: the one that was measured to be the fastest
    launch        where kernels run

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
