"""What is measured: sizes, the sweeps over them, and the one set-up function that every measurement uses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

CLASSES = 4
DISTILLATION = ("contrastive_distillation", "action_contrast")
KERNEL = {"contrastive_distillation": "action_contrast", "info_nce": "log_sum_exp"}  # that they run


@dataclass(frozen=True)
class Problem:
    """Sizes of one measurement.

    Args:
        operator: of ``action_kernels``, or ``info_nce``: the positive is a bank row, every other row a negative.
        n: queries N (of each group).
        m: bank rows M (of each group).
        d: features D.
        k: selected or drawn rows of a query.
        dtype: of queries and bank.
        groups: G, one bank each.
        bank_gradient: the bank gets a gradient as well.
    """

    operator: str
    n: int
    m: int
    d: int
    k: int = 0
    dtype: torch.dtype = torch.float32
    groups: int = 1
    bank_gradient: bool = False

    @property
    def pairs(self) -> int:
        """Similarities that the operator needs."""
        if self.operator == "relation_negatives":
            return 0
        return self.groups * self.n * (self.k if self.operator == "anatomical_contrast" else self.m)

    @property
    def multiply_adds(self) -> int:
        """Of forward and backward, at the least: a product for each similarity, and one for each gradient."""
        if self.operator == "hard_negatives":
            return self.pairs * self.d  # the gradient runs through k rows only
        both_sides = 4 if self.operator in DISTILLATION else 2  # products that a bank gradient repeats or adds
        products = (3 if self.operator in DISTILLATION else 2) + both_sides * self.bank_gradient
        return products * self.pairs * self.d

    @property
    def exponentials(self) -> int:
        """Of forward and backward, at the least."""
        if self.operator in DISTILLATION:
            return 2 * self.pairs * (1 + self.bank_gradient)
        return 0 if self.operator == "hard_negatives" else self.pairs

    @property
    def eager_bytes(self) -> int:
        """Roughly what plain PyTorch holds at its peak."""
        if self.operator == "anatomical_contrast":
            return 4 * self.pairs * (2 * self.d + 8)  # the gather, and a copy
        return 32 * max(self.pairs, self.groups * self.n * self.m)

    def __str__(self) -> str:
        sizes = (
            f"G={self.groups} " * (self.groups > 1)
            + f"N={self.n} M={self.m} D={self.d}"
            + f" k={self.k}" * (self.k > 0)
        )
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.operator} {sizes} {kind}" + ", bank gradient" * self.bank_gradient


BASE = Problem("action_contrast", 4096, 8192, 64, 64)
INFO_NCE = Problem("anatomical_contrast", 1024, 4096, 512, 512)  # a training step's, with published settings
LARGE = Problem("action_contrast", 65536, 16384, 128, 64, dtype=torch.bfloat16)

# What varies, by the name of the sweep: a plot has one sweep's variable on its axis.
SWEEPS: dict[str, list[Problem]] = {
    "features": [
        replace(BASE, operator=operator, d=d, k=k)
        for operator, k in (("contrastive_distillation", 0), ("action_contrast", 64))
        for d in (32, 64, 128, 256, 512)
    ],
    "small": [
        Problem("contrastive_distillation", n, m, d)
        for n, m, d in ((6, 36, 512), (8, 8192, 64), (64, 1024, 128), (256, 256, 512), (1, 65536, 64))
    ],
    "operators": [
        INFO_NCE,
        replace(INFO_NCE, bank_gradient=True),
        Problem("anatomical_contrast", 256, 2048, 64, 128),
        Problem("info_nce", 1024, 8192, 128),
        replace(BASE, operator="hard_negatives", n=1024),
        Problem("relation_negatives", 1024, 65536, 1, 512),
        replace(BASE, operator="contrastive_distillation", n=1024, k=0, bank_gradient=True),
        Problem("contrastive_distillation", 6, 36, 256, groups=49),  # a bank for each window position
        Problem("contrastive_distillation", 64, 1024, 256, groups=49),
    ],
    "queries": [replace(BASE, n=n) for n in (256, 1024, 4096, 16384, 65536)],
    "rows": [replace(BASE, n=1024, m=m) for m in (1024, 4096, 16384, 65536, 262144)],
    "selected": [replace(BASE, n=1024, k=k) for k in (1, 16, 64, 256, 1024)],
    "dtypes": [replace(BASE, n=1024, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)],
    "large": [
        replace(LARGE, operator="contrastive_distillation", k=0),
        replace(LARGE, operator="contrastive_distillation", k=0, bank_gradient=True),
        LARGE,
        replace(LARGE, operator="info_nce", k=0),
        replace(LARGE, operator="hard_negatives", n=1024, m=2**20, k=512),
    ],
}
GPU_ONLY = ("large",)  # minutes each on a CPU


@dataclass
class Inputs:
    """The tensors of one problem; groups lead where there are several."""

    student: Tensor  # [(G,) N, D], a leaf that gets a gradient; also the query
    teacher: Tensor  # [(G,) N, D], also the positive
    bank: Tensor  # [(G,) M, D]
    query_labels: Tensor  # [(G,) N] classes; info_nce: the bank row that is the positive
    bank_labels: Tensor  # [(G,) M]
    index: Tensor  # [(G,) N, k]
    relation: Tensor  # [C, C]
    k: int

    @property
    def leaves(self) -> list[Tensor]:
        return [x for x in (self.student, self.bank) if x.requires_grad]


def make_inputs(problem: Problem, device: str) -> Inputs:
    """The same numbers on every device. Queries lie near bank rows, so that no softmax is flat."""
    generator = torch.Generator().manual_seed(problem.n + problem.m + problem.d)
    leading = (problem.groups,) if problem.groups > 1 else ()
    queries, rows = (*leading, problem.n), (*leading, problem.m)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def integers(high: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    bank = normal(*rows, problem.d)
    near = integers(problem.m, queries)
    teacher = torch.take_along_dim(bank, near[..., None], dim=-2)
    noise = 0.5 * normal(*queries, problem.d)
    if problem.operator != "info_nce":
        teacher = teacher + noise
    query_labels = near if problem.operator == "info_nce" else integers(CLASSES, queries)
    index = integers(problem.m, (*queries, problem.k))
    student = teacher + 0.5 * normal(*queries, problem.d)
    bank_labels, relation = integers(CLASSES, rows), torch.rand(CLASSES, CLASSES, generator=generator)
    student, teacher, bank = (x.to(device, problem.dtype) for x in (student, teacher, bank))
    return Inputs(
        student.requires_grad_(problem.operator != "relation_negatives"),
        teacher,
        bank.requires_grad_(problem.bank_gradient),
        *(x.to(device) for x in (query_labels, bank_labels, index, relation)),
        problem.k,
    )
