"""Random problems on the native CPU backend against the reference in float64: shapes, strides, dtypes, labels."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import formulas
import pytest
import torch
from kernel_functions import Kernels
from torch import Tensor

from action_kernels.backends import cpu

CPU, REFERENCE = Kernels("cpu"), Kernels("reference")

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))

CASES, BATCH = 3000, 100
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Problem:
    """Rows and labels of one call, and how far float32 may be from the truth."""

    queries: Tensor  # [G, N, D], also the student
    partners: Tensor  # [G, N, D], teachers or positives
    bank: Tensor  # [G, M, D]
    query_labels: Tensor | None
    bank_labels: Tensor | None
    k: int
    temps: tuple[float, float]
    normalize: bool

    @property
    def doubles(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.queries.double(), self.partners.double(), self.bank.double()

    @property
    def tolerance(self) -> float:
        """A few float32 roundings of the largest similarity, at the smaller temperature."""
        norms = [1.0 if self.normalize else x.double().norm(dim=-1).max().item() for x in self.doubles]
        return 2e-6 * max(1.0, max(norms[:2]) * norms[2]) / min(self.temps)


def strided(x: Tensor, rng: random.Random) -> Tensor:
    """The same values in another layout."""
    layout = rng.randrange(5)
    if layout == 0:
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == 1:
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == 2:
        wide = x.new_full((x.shape[0], x.shape[1] * 2, x.shape[2] + 3), torch.nan)
        wide[:, ::2, 2:-1] = x
        return wide[:, ::2, 2:-1]
    if layout == 3:
        wide = x.new_full((*x.shape[:2], 2 * x.shape[2]), torch.nan)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    return x


def labels(count: tuple[int, int], pattern: str, rng: random.Random) -> Tensor:
    if pattern == "one class":
        return torch.full(count, 2)
    if pattern == "none known":
        return torch.full(count, -1)
    drawn = torch.randint(-1, rng.choice([2, 5, 40]), count)
    return drawn * (1 << 33) if pattern == "huge" else drawn


def draw(rng: random.Random) -> Problem:
    groups, n, m = (
        rng.choice([1, 1, 1, 2, 3]),
        rng.randint(1, 40),
        rng.choice([1, rng.randint(1, 30), rng.randint(1, 400)]),
    )
    d = rng.choice([1, rng.randint(1, 12), rng.randint(1, 70)])
    bank = torch.randn(groups, m, d) / d**0.5
    near = bank[:, torch.randint(m, (n,))]
    partners = near + rng.choice([0.0, 0.3]) * torch.randn(groups, n, d)
    queries = partners + rng.choice([0.0, 0.5]) * torch.randn(groups, n, d) / d**0.5
    if rng.random() < 0.2:
        bank[:, ::3] = bank[:, :1].clone()  # ties
    if rng.random() < 0.1:
        bank[:, -1] = queries[:, 0] = 0.0
    query_dtype, bank_dtype = rng.choice(DTYPES), rng.choice(DTYPES)
    pattern = rng.choice(["no labels", "random", "random", "huge", "one class", "none known"])
    labelled = pattern != "no labels"
    return Problem(
        strided(queries.to(query_dtype), rng),
        strided(partners.to(query_dtype), rng),
        strided(bank.to(bank_dtype), rng),
        labels((groups, n), pattern, rng) if labelled else None,
        labels((groups, m), pattern if pattern != "none known" else "random", rng) if labelled else None,
        rng.choice([1, rng.randint(1, m), rng.randint(1, m + 5)]),
        (rng.choice([0.05, 0.1, 1.0]), rng.choice([0.02, 0.1, 1.0])),
        rng.random() < 0.7,
    )


def assert_close(got: Tensor, want: Tensor, tolerance: float, what: str) -> None:
    assert got.shape == want.shape, what
    assert torch.equal(got.isinf(), want.isinf()), what
    finite = want.isfinite()
    if not finite.any():
        return
    got, want = got.double()[finite], want[finite]
    error, scale = (got - want).abs().max().item(), max(1.0, want.abs().max().item())
    assert error <= tolerance * scale, f"{what}: error {error:.3g} at scale {scale:.3g}, tolerance {tolerance:.3g}"


def assert_selection(problem: Problem, similarity: Tensor, index: Tensor) -> None:
    """Values of the best eligible rows; indices that have them, each once."""
    queries, _, bank = problem.doubles
    arguments = problem.query_labels, problem.bank_labels, problem.normalize
    want = REFERENCE.hard_negatives(queries, bank, problem.k, *arguments)
    assert torch.equal(index >= 0, want[1] >= 0)
    assert_close(similarity, want[0], problem.tolerance, "similarity")
    exact = formulas.similarities(queries, bank, problem.normalize)
    if problem.bank_labels is not None:
        known, own = problem.bank_labels.unsqueeze(1), problem.query_labels.unsqueeze(2)
        exact = exact.masked_fill((known < 0) | (known == own), -torch.inf)
    chosen = exact.gather(2, index.clamp(min=0))
    assert_close(similarity[index >= 0], chosen[index >= 0], problem.tolerance, "selected rows")
    for row in index.flatten(0, 1).tolist():
        found = [j for j in row if j >= 0]
        assert len(set(found)) == len(found)


def check_contrast(p: Problem) -> None:
    arguments = p.k, *p.temps, p.query_labels, p.bank_labels, p.normalize, True, True
    ours = CPU.action_contrast(p.queries, p.partners, p.bank, *arguments)
    want = REFERENCE.action_contrast(*p.doubles, *arguments)
    for name in ("kl", "statistics"):
        assert_close(getattr(ours, name), getattr(want, name), p.tolerance, name)
    compare_gradients(p, [ours.student_grad], [want.student_grad], (p.queries,))
    assert_selection(p, ours.similarity, ours.index)
    lses = want.statistics[:2] + math.log(2)  # over a bank of twice these rows
    got = CPU.action_contrast_student_gradient(p.queries, p.partners, p.bank, lses, *p.temps, p.normalize)
    compare_gradients(p, [2 * got], [want.student_grad], (p.queries,))
    upstream = torch.randn(p.queries.shape[:2])
    got = CPU.action_contrast_bank_gradient(
        upstream, p.queries, p.partners, p.bank, ours.statistics, *p.temps, p.normalize
    )
    want = REFERENCE.action_contrast_bank_gradient(
        upstream.double(), *p.doubles, want.statistics, *p.temps, p.normalize
    )
    compare_gradients(p, [got], [want], (p.bank,))


def check_selection(p: Problem) -> None:
    arguments = p.query_labels, p.bank_labels, p.normalize
    similarity, index = CPU.hard_negatives(p.queries, p.bank, p.k, *arguments)
    assert_selection(p, similarity, index)
    upstream = torch.randn(index.shape)
    got = CPU.hard_negatives_gradient(upstream, p.queries, p.bank, index, p.normalize, True, True)
    queries, _, bank = p.doubles
    want = REFERENCE.hard_negatives_gradient(upstream.double(), queries, bank, index, p.normalize, True, True)
    compare_gradients(p, got, want, (p.queries, p.bank))


def check_info_nce(p: Problem) -> None:
    index = torch.randint(-1, p.bank.shape[1] + 1, (*p.queries.shape[:2], p.k))  # one beyond the bank, too
    temp = p.temps[0]
    loss, lse = CPU.anatomical_contrast(p.queries, p.partners, p.bank, index, temp, p.normalize)
    want = REFERENCE.anatomical_contrast(*p.doubles, index, temp, p.normalize)
    assert_close(loss, want[0], p.tolerance, "loss")
    assert_close(lse, want[1], p.tolerance, "lse")
    upstream = torch.randn(p.queries.shape[:2])
    flags = temp, p.normalize, True, True, True
    got = CPU.anatomical_contrast_gradient(upstream, p.queries, p.partners, p.bank, index, lse, *flags)
    exact = REFERENCE.anatomical_contrast_gradient(upstream.double(), *p.doubles, index, want[1], *flags)
    compare_gradients(p, got, exact, (p.queries, p.partners, p.bank))


def compare_gradients(p: Problem, got: list[Tensor], want: list[Tensor], rows: tuple[Tensor, ...]) -> None:
    """Gradients of normalised rows in units of 1 / |row|, of which a zero row has 1e12."""
    for i, (x, y, raw) in enumerate(zip(got, want, rows, strict=True)):
        unit = raw.double().norm(dim=-1, keepdim=True).clamp(min=1e-12) if p.normalize else 1.0
        scale = 1.0 / min(p.temps) * max(1.0, p.queries.shape[1] ** 0.5)  # of sums in which terms may cancel
        assert_close(x.double() * unit / scale, y * unit / scale, 2 * p.tolerance, f"gradient {i}")


@pytest.mark.parametrize("batch", range(CASES // BATCH))
def test_random_problems(batch: int) -> None:
    for case in range(BATCH * batch, BATCH * (batch + 1)):
        rng = random.Random(case)
        torch.manual_seed(case)
        problem = draw(rng)
        try:
            rng.choice([check_contrast, check_selection, check_info_nce])(problem)
        except AssertionError as error:
            shape = tuple(problem.queries.shape), problem.bank.shape[1], problem.k
            dtypes = problem.queries.dtype, problem.bank.dtype
            raise AssertionError(
                f"case {case}, {shape}, {dtypes}, {problem.temps}, {problem.normalize}: {error}"
            ) from None
