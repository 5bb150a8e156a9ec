"""Every instruction set that the native CPU module has code for and this machine runs."""

from __future__ import annotations

import formulas
import pytest
import torch
from formulas import differentiate, errors, neighbours

import action_kernels
from action_kernels.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))


def exp2(x: torch.Tensor) -> torch.Tensor:
    x, y = x.contiguous(), torch.empty_like(x)
    cpu._native.exp2(x, y)
    return y


def test_generic_code_is_always_there() -> None:
    assert cpu.variants()[-1] == "generic"
    assert cpu.variant() == cpu.variants()[0]


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="'mmx'.*generic"):
        cpu.use_variant("mmx")


def test_exponential_is_accurate(variant: str) -> None:
    x = torch.cat([torch.linspace(-126, 0, 1_000_003), torch.linspace(-1, 1, 100_001), torch.tensor([0.0, 126.9])])
    exact = x.double().exp2()
    worst = ((exp2(x).double() - exact) / exact).abs().max().item()
    assert worst < 1.2e-7
    assert exp2(torch.zeros(5)).tolist() == [1.0] * 5


def test_exponential_at_its_ends(variant: str) -> None:
    y = exp2(torch.tensor([-torch.inf, -1e30, -150.0, -127.0, torch.nan, -126.0, 1.0]))
    assert y[:4].tolist() == [0.0] * 4
    assert y[4].isnan()
    assert y[5:].tolist() == [2.0**-126, 2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n, m, d", [(3, 5, 2), (37, 259, 33), (70, 130, 64), (1, 121, 7)])
def test_agrees_with_float64(variant: str, n: int, m: int, d: int, dtype: torch.dtype) -> None:
    rows = [x.to(dtype) for x in neighbours(n, m, d)]
    upstream = torch.randn(n)
    student, teacher, bank = rows

    def ours(s: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return action_kernels.contrastive_distillation(s, teacher, b, reduction="none")

    def formula(s: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return formulas.distillation(s, teacher.double(), b)

    result = differentiate(ours, (student, bank), upstream)
    exact = differentiate(formula, (student.double(), bank.double()), upstream)
    # One float32 rounding of a similarity, at temperature 0.01, and one of the gradient's own dtype.
    tolerance = 100 * torch.finfo(torch.float32).eps * 2 + torch.finfo(dtype).eps / 2
    for x, truth in zip(result, exact, strict=True):
        assert max(errors(x, truth)) < tolerance


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("k", [1, 64, 200, 700])
def test_selection(variant: str, k: int, labelled: bool) -> None:
    query, _, bank = neighbours(21, 650, 16)
    labels = (torch.randint(-1, 3, (21,)), torch.randint(-1, 3, (650,))) if labelled else (None, None)
    similarity, index = action_kernels.hard_negatives(query, bank, k, query_labels=labels[0], bank_labels=labels[1])
    exact = formulas.similarities(query.double(), bank.double())
    eligible = torch.ones(21, 650, dtype=torch.bool)
    if labelled:
        eligible = (labels[0][:, None] != labels[1]) & (labels[1] >= 0)
    expected = exact.masked_fill(~eligible, -torch.inf).sort(dim=-1, descending=True).values[:, :k]
    found = index >= 0
    assert torch.equal(found[:, : expected.shape[1]], expected > -torch.inf)
    assert not found[:, expected.shape[1] :].any()
    torch.testing.assert_close(similarity[found].double(), expected[expected > -torch.inf], rtol=0, atol=1e-6)
    chosen = exact.gather(1, index.clamp(min=0))
    torch.testing.assert_close(similarity[found].double(), chosen[found], rtol=0, atol=1e-6)
    assert eligible.gather(1, index.clamp(min=0))[found].all()
    assert all(len(set(row[row >= 0].tolist())) == (row >= 0).sum() for row in index)
