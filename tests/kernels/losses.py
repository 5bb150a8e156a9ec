"""Every differentiable operator as a function of rows, on small problems, for what has to hold for all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from formulas import neighbours
from torch import Tensor

from action_kernels import (
    action_contrast,
    anatomical_contrast,
    contrastive_distillation,
    hard_negatives,
    info_nce,
    log_sum_exp,
)


def example(
    device: str,
    dtype: torch.dtype = torch.float32,
    groups: int = 2,
    n: int = 5,
    m: int = 11,
    d: int = 7,
) -> dict[str, Tensor]:
    """Rows [G, n, d] and [G, m, d], their labels, and an index [G, n, 4] into the bank."""
    student, teacher, bank = (x.to(device, dtype) for x in neighbours(n, m, d, groups))
    return {
        "student": student,
        "teacher": teacher,
        "bank": bank,
        "query_labels": torch.randint(3, (groups, n), device=device),
        "bank_labels": torch.randint(-1, 3, (groups, m), device=device),
        "index": torch.randint(-1, m, (groups, n, 4), device=device),
    }


def losses(
    device: str, n: int = 5, m: int = 11, d: int = 7
) -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Every differentiable function as (rows -> scalar), with the rows."""
    x = example(device, n=n, m=m, d=d)
    rows = (x["student"], x["bank"])
    labels = {name: x[name] for name in ("query_labels", "bank_labels")}

    def both(student: Tensor, bank: Tensor) -> Tensor:
        divergence, similarity, index = action_contrast(student, x["teacher"], bank, 3, **labels)
        return divergence + torch.where(index >= 0, similarity, 0.0).sum()

    def hardest(student: Tensor, bank: Tensor) -> Tensor:
        return hard_negatives(student, bank, 3)[0].square().sum()

    return {
        "contrastive_distillation": (lambda s, b: contrastive_distillation(s, x["teacher"], b), rows),
        "action_contrast": (both, rows),
        "hard_negatives": (hardest, rows),
        "anatomical_contrast": (
            lambda q, p, b: anatomical_contrast(q, p, b, x["index"]),
            (x["student"], x["teacher"], x["bank"]),
        ),
        "log_sum_exp": (lambda q, b: log_sum_exp(q, b).square().mean().float(), rows),
        "info_nce": (info_nce, (x["student"], x["teacher"], x["bank"])),
    }


FUNCTIONS = list(losses("cpu"))


def gradients(function: Callable[..., Tensor], rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The value and, after a backward pass, the gradient of every argument."""
    leaves = [x.detach().clone().requires_grad_() for x in rows]
    value = function(*leaves)
    value.backward()
    return value.detach(), *(x.grad for x in leaves)
