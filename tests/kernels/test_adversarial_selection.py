"""Banks that are made to mislead a selection: the result stays exact, to the last tie, on every backend.

All numbers are small and whole, so that every similarity is exact and most are tied. In the GPU backends limits from
group maxima leave few candidates; where they cannot, a buffer selects again for the queries that are flagged. Which
way a case goes is part of the test.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import formulas
import pytest
import torch
from cuda_calls import front, kept_workspaces, launches
from kernel_functions import operator_file
from torch import Tensor

from action_kernels import action_contrast, hard_negatives

N, M, D, K = 6, 1024, 8, 16
LARGE = 2**40  # labels beyond 32 bits
BY_LIMITS = "triton", "cuda"  # backends


@pytest.fixture
def redone(backend: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each call of a GPU backend in which limits select: for how many queries the buffer selects again."""
    found: list[int] = []
    if backend == "triton":
        search = import_module("action_kernels.backends.triton.search")
        select = search.buffered

        def watched(*arguments: object) -> Tensor:
            flags = arguments[-1]
            if isinstance(flags, Tensor):
                found.append(int((flags != 0).sum()))
            return select(*arguments)

        monkeypatch.setattr(search, "buffered", watched)
    if backend == "cuda":
        workspaces = kept_workspaces(monkeypatch)
        for operator in ("hard_negatives", "action_contrast"):
            module = operator_file("cuda", operator)
            monkeypatch.setattr(module, "_forward", counting(module._forward, workspaces, found))
    return found


def counting(
    forward: Callable[[NamedTuple], None], workspaces: list[Tensor], found: list[int]
) -> Callable[[NamedTuple], None]:
    """The launcher, which notes for how many queries the buffer has selected again."""

    def counted(params: Any) -> None:
        forward(params)
        if "finish_and_collect" in launches():
            found.append(int((front(workspaces[-1], params.index[..., 0].numel()) < 0).sum()))

    return counted


def whole(*size: int, largest: int = 6) -> Tensor:
    return torch.randint(-largest, largest + 1, size)


def runs(length: int) -> Tensor:
    """Neighbours that are nearly alike, as the pixels of one image are."""
    return whole(M // length, D).repeat_interleave(length, 0) * 4 + whole(M, D, largest=1)


def ramp(step: int) -> Tensor:
    """Every row a little better than the one before it, or than the one after it, for a query of positive numbers."""
    ranks = torch.arange(M)[::step] if step > 0 else torch.arange(M).flip(0)
    return torch.cat([(ranks // 32)[:, None], (ranks % 32)[:, None], torch.zeros(M, D - 2).long()], 1)


def plateau(width: int) -> Tensor:
    """So many equal rows that no buffer has room for them all, and no other row as good."""
    bank = whole(M, D)
    bank[torch.randperm(M)[:width]] = 16
    return bank


def along_ramps() -> Tensor:
    return torch.cat([torch.tensor([[32, 1]]).repeat(N, 1), torch.zeros(N, D - 2).long()], 1)


ONES = torch.ones(N, D, dtype=torch.int64)
CASES: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor], bool]] = {  # bank, queries, whether to select again
    "in no order": (lambda: whole(M, D), lambda: whole(N, D), False),
    "runs of 8": (lambda: runs(8), lambda: whole(N, D), False),
    "runs of 32": (lambda: runs(32), lambda: whole(N, D), False),
    "rising": (lambda: ramp(1), along_ramps, False),
    "falling": (lambda: ramp(-1), along_ramps, False),
    "all rows equal": (lambda: whole(1, D).expand(M, D), lambda: whole(N, D), True),
    "zeros": (lambda: torch.zeros(M, D), lambda: whole(N, D), True),
    "a wide plateau": (lambda: plateau(600), lambda: ONES, True),
    "a narrow plateau": (lambda: plateau(40), lambda: ONES, False),
    "a plateau of k": (lambda: plateau(K), lambda: ONES, False),
    "few distinct rows": (lambda: whole(3, D)[torch.randint(3, (M,))], lambda: whole(N, D), True),
}


def check(result: tuple[Tensor, Tensor], exact: Tensor, expected: list[list[int]]) -> None:
    similarity, index = (x.detach().cpu() for x in result)
    best = torch.tensor(expected)
    assert torch.equal(index, best)
    values = exact.gather(1, best.clamp_min(0)).masked_fill(best < 0, -torch.inf)
    assert torch.equal(similarity.double(), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_misleading_banks(backend: str, device: str, redone: list[int], case: str, dtype: torch.dtype) -> None:
    make_bank, make_queries, again = CASES[case]
    bank, query = make_bank().to(dtype), make_queries().to(dtype)
    exact = query.double() @ bank.double().T
    result = hard_negatives(query.to(device), bank.to(device), K, normalize=False)
    check(result, exact, formulas.selection(exact, K))
    assert [count > 0 for count in redone] == [again] * (backend in BY_LIMITS)


@pytest.mark.parametrize("case", ["in no order", "runs of 32", "all rows equal", "a wide plateau"])
def test_beside_softmaxes_and_their_gradient(backend: str, device: str, redone: list[int], case: str) -> None:
    make_bank, make_queries, again = CASES[case]
    bank, query = make_bank().float(), make_queries().float()
    exact = query.double() @ bank.double().T
    student = query.to(device, copy=True).requires_grad_()
    for rows in (student, student.detach()):
        temps = {"student_temp": 50.0, "teacher_temp": 20.0}
        result = action_contrast(rows, query.to(device), bank.to(device), K, **temps, normalize=False)
        check(result[1:], exact, formulas.selection(exact, K))
    assert [count > 0 for count in redone] == [again, again] * (backend in BY_LIMITS)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("base", [0, 2**24 - 2, LARGE], ids=["small", "float32's last", "64 bits"])
def test_labels(backend: str, device: str, redone: list[int], base: int, again: bool) -> None:
    """Sorted clusters, a class each; or all rows equal but for their classes. Labels that agree in 32 bits differ."""
    classes = torch.tensor([base, base + 1, base + 2, base + 2**32])
    of_bank = torch.arange(M) * 4 // M
    centers = whole(4, D) * 4
    bank = (centers[of_bank] * (not again) + whole(M, D, largest=1) * (not again) + again).float()
    of_queries = torch.tensor([0, 1, 2, 3, 0, 1])
    query = centers[of_queries].float()
    labels = [classes[of_queries], classes[of_bank]]
    labels[0][5] = -LARGE  # of no class: all rows of a class are another one's
    labels[1][::7] = -1
    labels[1][1::7] = -LARGE
    exact = query.double() @ bank.double().T
    result = hard_negatives(
        query.to(device),
        bank.to(device),
        K,
        query_labels=labels[0].to(device),
        bank_labels=labels[1].to(device),
        normalize=False,
    )
    check(result, exact, formulas.selection(exact, K, *labels))
    if backend in BY_LIMITS:  # equal rows are too many; else a query is redone whose label is beyond float32's numbers
        assert redone == [N if again else int((labels[0] > 2**24).sum())]


@pytest.mark.parametrize("eligible", [0, 1, K - 1, K, K + 1, 130])
@pytest.mark.parametrize("together", [False, True])
def test_few_eligible_rows(backend: str, device: str, redone: list[int], eligible: int, together: bool) -> None:
    """Of all the bank, or where rows are dealt out to tiles, of one tile alone."""
    bank, query = whole(M, D).float(), whole(N, D).float()
    rows = torch.arange(0, M, 8 if together else 7)[:eligible]
    labels = torch.zeros(N, dtype=torch.int64), torch.full((M,), -1)
    labels[1][::2] = 0
    labels[1][rows] = 1
    exact = query.double() @ bank.double().T
    result = hard_negatives(
        query.to(device),
        bank.to(device),
        K,
        query_labels=labels[0].to(device),
        bank_labels=labels[1].to(device),
        normalize=False,
    )
    check(result, exact, formulas.selection(exact, K, *labels))
    assert redone == [0] * (backend in BY_LIMITS)


def test_one_query_of_many_is_redone(backend: str, device: str, redone: list[int]) -> None:
    bank, query = whole(M, D), whole(N, D)
    bank[:, 0] = (torch.arange(M) % 2) * 5  # a plateau for a query that sees nothing else
    query[2] = 0
    query[2, 0] = 1
    bank, query = bank.float(), query.float()
    exact = query.double() @ bank.double().T
    check(hard_negatives(query.to(device), bank.to(device), K, normalize=False), exact, formulas.selection(exact, K))
    assert redone == [1] * (backend in BY_LIMITS)


@pytest.mark.parametrize("k", [1, 2, 100, 128, 129, M, M + 5])
def test_any_k_of_a_bank_in_runs(backend: str, device: str, k: int) -> None:
    bank, query = runs(16).float(), whole(N, D).float()
    exact = query.double() @ bank.double().T
    check(hard_negatives(query.to(device), bank.to(device), k, normalize=False), exact, formulas.selection(exact, k))


def test_groups_of_banks(backend: str, device: str, redone: list[int]) -> None:
    """One bank is a plateau, one in runs, one in no order; labels everywhere."""
    bank = torch.stack([plateau(600), runs(32), whole(M, D)]).float()
    query = torch.stack([ONES, whole(N, D), whole(N, D)]).float()
    labels = torch.randint(3, (3, N)), torch.randint(-1, 3, (3, M))
    exact = query.double() @ bank.double().mT
    similarity, index = hard_negatives(
        query.to(device),
        bank.to(device),
        K,
        query_labels=labels[0].to(device),
        bank_labels=labels[1].to(device),
        normalize=False,
    )
    for g in range(3):
        expected = formulas.selection(exact[g], K, labels[0][g], labels[1][g])
        check((similarity[g], index[g]), exact[g], expected)
    assert redone == [N] * (backend in BY_LIMITS)


def test_nan_and_infinity_and_zeros_of_both_signs(backend: str, device: str, redone: list[int]) -> None:
    bank, query = whole(M, D).float(), whole(N, D).float()
    bank[::3] = torch.nan
    bank[1::3, 0] = -0.0
    query[4] = torch.nan
    query[3] = -0.0
    exact = query.double() @ bank.double().T
    check(hard_negatives(query.to(device), bank.to(device), K, normalize=False), exact, formulas.selection(exact, K))
    assert redone == [1] * (backend in BY_LIMITS)  # all rows are equal for the query of zeros
    bank[5, 1] = torch.inf
    query[query == 0] = 1  # infinity times zero would be NaN
    query[3] = 2
    exact = query.double() @ bank.double().T
    result = hard_negatives(query.to(device), bank.to(device), K, normalize=False)
    check(result, exact, formulas.selection(exact, K))
    assert redone[1:] == [N - 1] * (backend in BY_LIMITS)  # all but the query with NaN


@pytest.mark.parametrize("seed", range(3))
def test_cosines_of_nearly_equal_rows(backend: str, device: str, seed: int) -> None:
    """A collapsed bank: similarities differ by a few roundings. Chosen rows are the best up to those."""
    torch.manual_seed(seed)
    center = torch.randn(1, D)
    bank, query = center + 1e-4 * torch.randn(M, D), center + 1e-4 * torch.randn(N, D)
    exact = formulas.similarities(query.double(), bank.double())
    similarity, index = (x.cpu() for x in hard_negatives(query.to(device), bank.to(device), K))
    best = exact.sort(descending=True).values[:, :K]
    torch.testing.assert_close(exact.gather(1, index), best, rtol=0, atol=5e-7)
    torch.testing.assert_close(similarity.double(), best, rtol=0, atol=5e-7)
    assert all(len(row.unique()) == K for row in index)
