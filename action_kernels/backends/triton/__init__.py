"""The Triton backend: streaming kernels in which similarities never leave the registers.

    bank_pass     one pass over the bank: both softmaxes' sums, the divergence, the candidates for the selection
    selection     an exact top-k by a buffer of candidates
    statistics    the splits' sums into log-sum-exps; what a gradient reads of every query
    indexed_rows  bank rows that an index names, and sums over them
    rows          preparing rows, finishing gradients
    products      products of tiles
    tiles         which configuration a kernel runs with; `tuned`: the one that was measured to be the fastest
    launch        where kernels run

Working memory: a padded copy of student, teacher and bank in their own dtype, a few floats per query, and for the
selection a buffer per running program. Nothing synchronises with the host; the same input gives the same bits.
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
