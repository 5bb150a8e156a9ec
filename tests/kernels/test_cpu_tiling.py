"""The cuts of the native CPU backend must not show: scratch limits, tile and panel edges, labels of any size."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from formulas import neighbours
from kernel_functions import Kernels
from torch import Tensor

from action_kernels.backends import cpu

CPU, REFERENCE = Kernels("cpu"), Kernels("reference")

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))

SETTINGS = (0.1, 0.05)


@pytest.fixture(params=[0, 1 << 20, 32 << 20], ids=lambda b: f"{b >> 20}MiB")
def scratch(request: pytest.FixtureRequest) -> Iterator[int]:
    usual = cpu.scratch_limit()
    cpu.set_scratch_limit(request.param)
    yield request.param
    cpu.set_scratch_limit(usual)


def grouped(*rows: Tensor) -> list[Tensor]:
    return [x if x.dim() == 3 else x.unsqueeze(0) for x in rows]


def assert_like_reference(student: Tensor, teacher: Tensor, bank: Tensor, k: int, tolerance: float = 2e-5) -> None:
    """Both passes of both backends, in float64 for the reference."""
    ours = CPU.action_contrast(student, teacher, bank, k, *SETTINGS, None, None, True, True, True)
    doubles = student.double(), teacher.double(), bank.double()
    exact = REFERENCE.action_contrast(*doubles, k, *SETTINGS, None, None, True, True, True)
    for name in ("kl", "statistics", "student_grad", "similarity"):
        got, want = getattr(ours, name).double(), getattr(exact, name)
        finite = want.isfinite()
        assert torch.equal(got.isfinite(), finite), name
        torch.testing.assert_close(
            got[finite], want[finite], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m
        )
    got = CPU.action_contrast_student_gradient(student, teacher, bank, exact.statistics[:2], *SETTINGS, True).double()
    torch.testing.assert_close(got, exact.student_grad, rtol=tolerance, atol=tolerance)
    grad = torch.randn(student.shape[:2])
    got = CPU.action_contrast_bank_gradient(grad, student, teacher, bank, ours.statistics, *SETTINGS, True).double()
    want = REFERENCE.action_contrast_bank_gradient(grad.double(), *doubles, exact.statistics, *SETTINGS, True)
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * max(1e-3, want.abs().max().item()))


@pytest.mark.parametrize("n, m, d, k", [(70, 1500, 24, 5), (17, 121, 40, 121), (3, 20_000, 8, 64)])
def test_any_scratch_limit(scratch: int, n: int, m: int, d: int, k: int) -> None:
    assert_like_reference(*grouped(*neighbours(n, m, d)), k)


@pytest.mark.parametrize("m", [1, 5, 6, 7, 119, 120, 121, 239, 240, 241])
def test_tile_edges(m: int) -> None:
    assert_like_reference(*grouped(*neighbours(19, m, 12)), 3)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65])
def test_panel_edges(n: int) -> None:
    assert_like_reference(*grouped(*neighbours(n, 131, 12)), 3)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 6, 7, 11, 13, 1000, 6000])
def test_feature_counts(d: int) -> None:
    assert_like_reference(*grouped(*neighbours(20, 43, d)), 2)


def test_many_groups() -> None:
    assert_like_reference(*neighbours(6, 36, 48, 49), 4)


def test_small_scratch_gives_the_same_selection_and_divergence() -> None:
    student, teacher, bank = grouped(*neighbours(40, 3000, 24))
    usual = cpu.scratch_limit()
    results = []
    for limit in (usual, 0):
        cpu.set_scratch_limit(limit)
        results.append(CPU.action_contrast(student, teacher, bank, 9, *SETTINGS, None, None, True, True, True))
    cpu.set_scratch_limit(usual)
    for name in ("kl", "statistics", "similarity", "index"):
        assert torch.equal(getattr(results[0], name), getattr(results[1], name)), name
    torch.testing.assert_close(results[0].student_grad, results[1].student_grad, rtol=1e-5, atol=1e-6)


def test_gather_gradients_in_blocks_of_queries(scratch: int) -> None:
    query, positive, bank = grouped(*neighbours(50, 90, 20))
    index = torch.randint(-1, 90, (1, 50, 700))
    lse = CPU.anatomical_contrast(query, positive, bank, index, 0.5, True)[1]
    grad = torch.randn(1, 50)
    wanted = (True, True, True)
    got = CPU.anatomical_contrast_gradient(grad, query, positive, bank, index, lse, 0.5, True, *wanted)
    doubles = query.double(), positive.double(), bank.double()
    want = REFERENCE.anatomical_contrast_gradient(grad.double(), *doubles, index, lse, 0.5, True, *wanted)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-5 * y.abs().max().item())


def test_labels_beyond_32_bits() -> None:
    query, _, bank = grouped(*neighbours(30, 300, 8))
    small = torch.randint(0, 3, (1, 30)), torch.randint(-1, 3, (1, 300))
    large = tuple(torch.where(x < 0, x, x << 32) for x in small)  # equal in their low 32 bits
    expected = CPU.hard_negatives(query, bank, 20, *small, True)
    for x, y in zip(CPU.hard_negatives(query, bank, 20, *large, True), expected, strict=True):
        assert torch.equal(x, y)


def test_negative_scratch_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes must not be negative, got -1"):
        cpu.set_scratch_limit(-1)
