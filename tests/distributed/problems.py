"""Queries and a bank that every process of a test can make whole, to cut its own part and to know the truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

D, K = 6, 5
COUNTS = (3, 0, 7, 4)  # queries of each process
LENGTHS = (5, 9, 0, 12)  # bank rows of each


@dataclass
class Problem:
    """Everything of everybody; slots are in the order of a whole bank."""

    rank: int
    world: int
    student: Tensor  # [N, D]
    teacher: Tensor
    positive: Tensor
    bank: Tensor  # [M, D]
    query_labels: Tensor
    bank_labels: Tensor
    slots: Tensor  # [M] of the bank's rows
    lengths: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def own(self) -> slice:
        """The queries of this process."""
        start = sum(self.counts[: self.rank])
        return slice(start, start + self.counts[self.rank])

    def part(self, x: Tensor) -> Tensor:
        """What belongs to the bank rows of this process."""
        return x[self.slots % self.world == self.rank]

    def named(self, index: Tensor) -> Tensor:
        """Rows of the bank as slots."""
        return torch.where(index >= 0, self.slots[index.clamp_min(0)], -1)


def problem(
    rank: int,
    world: int,
    dtype: torch.dtype = torch.float64,
    *,
    whole_numbers: bool = False,
    lengths: tuple[int, ...] = LENGTHS,
    counts: tuple[int, ...] = COUNTS,
) -> Problem:
    lengths, counts = lengths[:world], counts[:world]
    n, m = sum(counts), sum(lengths)

    def rows(count: int) -> Tensor:
        if whole_numbers:
            return torch.randint(-1, 2, (count, D)).to(dtype)
        return (0.5 * torch.randn(count, D, dtype=torch.float64)).to(dtype)  # no logit is large, normalized or not

    slots = torch.cat([torch.arange(length) * world + r for r, length in enumerate(lengths)]).sort().values
    return Problem(
        rank,
        world,
        *(rows(n) for _ in range(3)),
        rows(m),
        torch.randint(0, 3, (n,)),
        torch.randint(-1, 3, (m,)),
        slots,
        lengths,
        counts,
    )


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in tensors]


def assert_near(found: Tensor | None, truth: Tensor | None, error: float, what: str) -> None:
    """The largest error over the largest number of the truth, of which parts are compared, is no more than that."""
    assert found is not None and truth is not None and found.shape == truth.shape, what
    lost = truth.isinf()
    assert torch.equal(found.isinf(), lost), what
    if found[~lost].numel():
        scale = max(truth[~lost].abs().max().item(), 1e-300)
        worst = (found[~lost].double() - truth[~lost].double()).abs().max().item() / scale
        assert worst <= error, f"{what}: relative error {worst:.3g}"
