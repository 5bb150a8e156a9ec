"""What a backend provides: one function per kernel, tensors in, tensors out.

Shapes: G groups (1 for an ungrouped call), N queries, M bank rows, D features, k selected or drawn rows.
Every floating tensor of a call lies on one device; float32, float16 or bfloat16 (the reference also takes float64).
Accumulation, losses, similarities and gradients of a 16-bit input are float32 (float64 for float64 input).
Log-sum-exps are always float64, a row's maximum plus the logarithm of its float32 sum: at a temperature of 0.01 they
reach 100, and rounding them to float32 would put one common error into all probabilities of a row. Likewise the losses
come from logits less their row's maximum. To subtract one in float32: (x - float(lse)) - float(lse - float(lse)).
With ``normalize`` the rows are scaled to unit length inside the kernel (norms below 1e-12 count as 1e-12), and
every gradient is the gradient of the *raw* row. Inputs may be non-contiguous. No kernel synchronises with the host.
A backend never raises for user errors (``functional`` has checked everything) and never sees an empty N, M or G.
Results are new contiguous tensors: the fake kernels promise so, and an operator may not return a view of its input.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Unusable(ImportError):
    """Raised by a backend's module that cannot even be imported here, with the reason as a sentence."""


class ContrastResult(NamedTuple):
    """Result of one pass over the bank, row by row."""

    kl: Tensor  # [G, N] KL(p_t || p_s)
    student_lse: Tensor  # [G, N] float64 log-sum-exp of the student's similarity / student_temp
    teacher_lse: Tensor  # [G, N] float64 log-sum-exp of the teacher's similarity / teacher_temp
    direction: Tensor  # [G, N, D] d kl_i / d student_i; [0] when not wanted
    similarity: Tensor  # [G, N, k] student similarities of the selected rows, descending; -inf where none is left
    index: Tensor  # [G, N, k] int64 bank rows of the selection; -1 where none is left


class Backend(Protocol):
    """The kernels of one backend: a module, registered by name in :mod:`action_kernels.backends`."""

    def unavailable(self) -> str | None:
        """Why this backend cannot run in this process, or None when it can. Cheap after the first call."""
        ...

    def supports(self, device_type: str, dtypes: tuple[torch.dtype, ...]) -> str | None:
        """Why it cannot take floating tensors of these dtypes on this kind of device, or None when it can."""
        ...

    def action_contrast(
        self,
        student: Tensor,  # [G, N, D]
        teacher: Tensor,  # [G, N, D]
        bank: Tensor,  # [G, M, D]
        k: int,  # 0: no selection
        student_temp: float,
        teacher_temp: float,
        query_labels: Tensor | None,  # [G, N] int64
        bank_labels: Tensor | None,  # [G, M] int64; rows with a negative label are never selected
        normalize: bool,
        direction: bool,
    ) -> ContrastResult:
        """Both softmaxes, their KL divergence, its gradient direction and the masked top-k in one pass.

        Without labels every bank row may be selected; with labels, rows of another class (label >= 0 and != query's).
        Ties go to the lower index. NaN similarities are never selected.
        """
        ...

    def contrast_bank_gradient(
        self,
        grad_kl: Tensor,  # [G, N]
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
        """Gradient [G, M, D] of ``sum(grad_kl * kl)`` in the bank, through the student's and teacher's similarities.

        d kl_i / d s_ij = (p_s(j) - p_t(j)) / student_temp
        d kl_i / d t_ij = p_t(j) * (log p_t(j) - log p_s(j) - kl_i) / teacher_temp
        """
        ...

    def hard_negatives(
        self,
        query: Tensor,  # [G, N, D]
        bank: Tensor,  # [G, M, D]
        k: int,
        query_labels: Tensor | None,
        bank_labels: Tensor | None,
        normalize: bool,
    ) -> tuple[Tensor, Tensor]:
        """(similarity, index) as in :class:`ContrastResult`, without the distillation."""
        ...

    def selection_gradient(
        self,
        grad_similarity: Tensor,  # [G, N, k]
        query: Tensor,
        bank: Tensor,
        index: Tensor,  # [G, N, k]
        normalize: bool,
        query_gradient: bool,
        bank_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the selected similarities in query [G, N, D] and bank [G, M, D]; [0] where not wanted.

        Entries with index -1 contribute nothing. Never forms N x k x D.
        """
        ...

    def relation_negatives(
        self,
        query_labels: Tensor,  # [G, N] int64, -1: no draw
        thresholds: Tensor,  # [G, C, C] int64, inclusive cumulative integer weights of class v for a query of class c
        class_start: Tensor,  # [G, C + 1] int64, where each class begins in `rows`
        rows: Tensor,  # [G, M] int64, bank rows sorted by class, then by row
        k: int,
        seed: int,  # 0 <= seed < 2**64
    ) -> Tensor:
        """Index [G, N, k] of drawn bank rows, -1 where no class can be drawn.

        Philox4x32-10 with key (seed & 0xffffffff, seed >> 32) and counter (draw, query, group, 0) gives words w0..w3.
        T = thresholds[g, c, C-1]; class v = the first with thresholds[g, c, v] > (w0 * T) >> 32; with n rows of class
        v, row = rows[g, class_start[g, v] + ((w1 * n) >> 32)]. T == 0 gives -1. T < 2**31: products fit 64 bits.
        """
        ...

    def anatomical_contrast(
        self,
        query: Tensor,  # [G, N, D]
        positive: Tensor,  # [G, N, D]
        bank: Tensor,  # [G, M, D]
        index: Tensor,  # [G, N, k] int64, entries outside 0..M-1 are skipped
        temp: float,
        normalize: bool,
    ) -> tuple[Tensor, Tensor]:
        """(loss, lse), both [G, N], lse float64: lse over the positive and the valid negatives of similarity / temp;
        loss = lse - <query, positive> / temp. Never forms N x k x D."""
        ...

    def anatomical_contrast_gradient(
        self,
        grad_loss: Tensor,  # [G, N]
        query: Tensor,
        positive: Tensor,
        bank: Tensor,
        index: Tensor,
        lse: Tensor,
        temp: float,
        normalize: bool,
        query_gradient: bool,
        positive_gradient: bool,
        bank_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients in query [G, N, D], positive [G, N, D] and bank [G, M, D]; [0] where not wanted."""
        ...
