"""Calls of the Triton backend, on tensors without data unless told otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Call:
    """A call of the backend: of action_contrast (``sides`` = 2), log_sum_exp (1) or, as a selection, hard_negatives."""

    dtype: torch.dtype
    precision: str  # of float32 products
    features: int
    k: int = 0
    labelled: bool = False
    sides: int = 2  # softmaxes
    student_grad: bool = False
    bank_grad: bool = False
    groups: int = 2
    queries: int = 4096
    rows: int = 8192

    @property
    def kind(self) -> str:
        """The dtype, and how float32 products are taken."""
        name = str(self.dtype).removeprefix("torch.")
        return f"{name} ({self.precision})" if self.dtype == torch.float32 else name

    @property
    def tensor_cores(self) -> bool:
        return not (self.dtype == torch.float32 and self.precision == "ieee")

    def inputs(self, device: str = "meta") -> list[torch.Tensor | None]:
        """Student, teacher, bank and the labels of queries and bank; random numbers, unless they have no data."""

        def rows(n: int) -> torch.Tensor:
            shape = self.groups, n, self.features
            return torch.randn(shape, device=device).to(self.dtype)

        def labels(n: int) -> torch.Tensor | None:
            return torch.randint(4, (self.groups, n), device=device) if self.labelled else None

        return [*map(rows, (self.queries, self.queries, self.rows)), *map(labels, (self.queries, self.rows))]

    def run(self, inputs: list[torch.Tensor | None] | None = None) -> tuple[torch.Tensor, ...]:
        """All results."""
        from action_kernels.backends.triton.action_contrast import action_contrast, action_contrast_bank_gradient
        from action_kernels.backends.triton.hard_negatives import hard_negatives
        from action_kernels.backends.triton.log_sum_exp import log_sum_exp, log_sum_exp_bank_gradient

        student, teacher, bank, *labels = inputs or self.inputs()
        if self.sides == 0:
            return hard_negatives(student, bank, self.k, *labels, True)
        if self.sides == 1:
            lse, gradient = log_sum_exp(student, bank, 0.1, True, self.student_grad)
            upstream = lse.float() if self.bank_grad else None
            found = () if upstream is None else (log_sum_exp_bank_gradient(upstream, student, bank, lse, 0.1, True),)
            return lse, gradient, *found
        temps = 0.1, 0.05
        result = action_contrast(
            student, teacher, bank, self.k, *temps, *labels, True, self.student_grad, self.bank_grad
        )
        if not self.bank_grad:
            return result
        of_bank = action_contrast_bank_gradient(result.kl, student, teacher, bank, result.statistics, *temps, True)
        return *result, of_bank


@dataclass(frozen=True)
class Gather:
    """Calls for indexed rows: InfoNCE and its gradients in query and positive, and with ``all_gradients`` those in the
    bank, and the selection's in query."""

    dtype: torch.dtype
    features: int
    k: int = 512
    groups: int = 2
    queries: int = 1024
    rows: int = 8192
    precision: str = "ieee"
    tensor_cores: bool = False  # every query has rows of its own
    all_gradients: bool = True

    @property
    def kind(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def run(self) -> None:
        from action_kernels.backends.triton.anatomical_contrast import (
            anatomical_contrast,
            anatomical_contrast_gradient,
        )
        from action_kernels.backends.triton.hard_negatives import hard_negatives_gradient

        def empty(*size: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(self.groups, *size, dtype=dtype, device="meta")

        query, positive = (empty(self.queries, self.features, dtype=self.dtype) for _ in range(2))
        bank = empty(self.rows, self.features, dtype=self.dtype)
        index = empty(self.queries, self.k, dtype=torch.int64)
        loss, lse = anatomical_contrast(query, positive, bank, index, 0.5, True)
        wanted = True, True, self.all_gradients
        anatomical_contrast_gradient(loss, query, positive, bank, index, lse, 0.5, True, *wanted)
        if not self.all_gradients:
            return
        similarity = torch.empty(index.shape, dtype=torch.float32, device="meta")
        hard_negatives_gradient(similarity, query, bank, index, True, True, False)
