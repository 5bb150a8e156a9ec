"""What a backend provides: a package with a file per operator, and there functions from tensors to tensors.

The functions of :mod:`~action_kernels.backends.reference` are the specification: every other backend that has the file
has the same functions with the same parameters. A backend that lacks an operator's file leaves it to the next one, and
likewise a function of it.

Shapes: G groups (1 for an ungrouped call), N queries, M bank rows, D features, k selected or drawn rows.
All floating tensors of a call are on one device; float32, float16 or bfloat16 (the reference also takes float64).
Accumulation, losses, similarities and gradients of a 16-bit input are float32 (float64 for float64 input).
Log-sum-exps are always float64, a row's maximum plus the logarithm of its float32 sum: at a temperature of 0.01 they
reach 100, and rounding them to float32 would put one common error into all probabilities of a row. Likewise the losses
come from logits less their row's maximum. To subtract one in float32: (x - float(lse)) - float(lse - float(lse)).
The statistics of ``action_contrast`` are the log-sum-exps of the student's and of the teacher's logits
(similarity / temp), and the mean over p_t of the teacher's logit less the student's. The gradients behind the forward
pass read them, that in the student the first two (``lses``): they may run over more rows than the gradient is given,
those of a bank of which its own are a part. The gradients of all parts then are those of the whole, or add up to them.
With ``normalize`` the rows are scaled to unit length inside the kernel (norms below 1e-12 count as 1e-12), and
every gradient is the gradient of the *raw* row. Inputs may be non-contiguous. No kernel synchronises with the host.
A backend never raises for user errors (the operator has checked everything) and never sees an empty N, M or G.
Results are new contiguous tensors: the fake kernels promise so, and an operator may not return a view of its input.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Unusable(ImportError):
    """Raised by a backend's module that cannot even be imported here, with the reason as a sentence."""


class ContrastResult(NamedTuple):
    """Result of one pass over the bank, row by row."""

    kl: Tensor  # [G, N] KL(p_t || p_s)
    statistics: Tensor  # [3, G, N] float64, see above; [0] when not wanted
    student_grad: Tensor  # [G, N, D] d kl_i / d student_i; [0] when not wanted
    similarity: Tensor  # [G, N, k] student similarities of the selected rows, descending; -inf where none is left
    index: Tensor  # type: ignore[assignment]  # [G, N, k] int64 bank rows of the selection; -1 where none is left


class Backend(Protocol):
    """A backend's package, registered by name in :mod:`action_kernels.backends`."""

    __name__: str

    def __hash__(self) -> int: ...

    def unavailable(self) -> str | None:
        """Why this backend cannot run in this process, or None when it can. Cheap after the first call."""
        ...

    def supports(self, device_type: str, dtypes: tuple[torch.dtype, ...]) -> str | None:
        """Why it cannot take floating tensors of these dtypes on this kind of device, or None when it can."""
        ...


def unsupported(expected: str, device_type: str, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """What :meth:`Backend.supports` says for kernels of one device that take float32 and the 16-bit dtypes."""
    if device_type != expected:
        return f"takes {expected.upper()} tensors, not {device_type}"
    for dtype in dtypes:
        if dtype not in KERNEL_DTYPES:
            return f"takes float32, float16 and bfloat16, not {dtype}"
    return None
