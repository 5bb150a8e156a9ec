"""hard_negatives: exact order and ties where arithmetic is exact, accuracy where it rounds, and the empty corners."""

from __future__ import annotations

import formulas
import pytest
import torch
from formulas import DTYPES, assert_as_good_as_plain, neighbours
from torch import Tensor

from action_kernels import action_contrast, hard_negatives

SHAPES = [(1, 1, 3, 1), (3, 5, 7, 8), (67, 259, 33, 16), (40, 1030, 24, 64), (9, 2100, 12, 513)]  # N, M, D, k


def random_labels(n: int, m: int) -> tuple[Tensor, Tensor]:
    """Three classes; in the bank also rows of no class."""
    return torch.randint(3, (n,)), torch.randint(-1, 3, (m,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_arithmetic_gives_the_exact_order(
    backend: str, device: str, shape: tuple, labelled: bool, dtype: torch.dtype
) -> None:
    """Small integers: every similarity is exact in every dtype, most are tied, and ties go to the lower row."""
    n, m, d, k = shape
    query, bank = torch.randint(-2, 3, (n, d)), torch.randint(-2, 3, (m, d))
    labels = random_labels(n, m) if labelled else (None, None)
    exact = (query @ bank.T).double()
    expected = torch.tensor(formulas.selection(exact, k, *labels))
    similarity, index = hard_negatives(
        query.to(device, dtype),
        bank.to(device, dtype),
        k,
        query_labels=None if labels[0] is None else labels[0].to(device),
        bank_labels=None if labels[1] is None else labels[1].to(device),
        normalize=False,
    )
    assert similarity.dtype == torch.float32 and index.dtype == torch.int64
    assert torch.equal(index.cpu(), expected)
    values = exact.gather(1, expected.clamp_min(0)).masked_fill(expected < 0, -torch.inf)
    assert torch.equal(similarity.cpu().double(), values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rounded_similarities_are_the_largest(backend: str, device: str, shape: tuple, dtype: torch.dtype) -> None:
    """Cosines round, so that near ties may swap; values, eligibility and distinctness may not suffer."""
    n, m, d, k = shape
    query, _, bank = (x.to(dtype) for x in neighbours(n, m, d))
    query_labels, bank_labels = random_labels(n, m)
    similarity, index = (
        x.cpu()
        for x in hard_negatives(
            query.to(device),
            bank.to(device),
            k,
            query_labels=query_labels.to(device),
            bank_labels=bank_labels.to(device),
        )
    )
    exact = formulas.similarities(query.double(), bank.double())
    best = torch.tensor(formulas.selection(exact, k, query_labels, bank_labels))
    assert torch.equal(index >= 0, best >= 0)
    found = index >= 0
    expected = exact.gather(1, best.clamp_min(0))
    torch.testing.assert_close(similarity[found].double(), expected[found], rtol=0, atol=5e-7)
    at_index = exact.gather(1, index.clamp_min(0))
    torch.testing.assert_close(similarity[found].double(), at_index[found], rtol=0, atol=5e-7)
    assert (similarity[~found] == -torch.inf).all()
    assert (similarity.diff(dim=-1)[found[:, 1:]] <= 0).all()
    for i in range(n):
        rows = index[i][found[i]]
        assert len(rows.unique()) == len(rows)
        assert (bank_labels[rows] >= 0).all() and (bank_labels[rows] != query_labels[i]).all()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(backend: str, device: str, shape: tuple, dtype: torch.dtype, normalize: bool) -> None:
    n, m, d, k = shape
    query, _, bank = (x.to(dtype) for x in neighbours(n, m, d))
    query_labels, bank_labels = random_labels(n, m)
    weight = torch.randn(n, k)

    leaves = [x.to(device).requires_grad_() for x in (query, bank)]
    similarity, index = hard_negatives(
        *leaves, k, query_labels=query_labels.to(device), bank_labels=bank_labels.to(device), normalize=normalize
    )
    found = (index >= 0).cpu()
    similarity.backward(weight.to(device))
    ours = [x.grad for x in leaves]

    def selected(working: torch.dtype) -> list[Tensor]:
        leaves = [x.to(working).requires_grad_() for x in (query, bank)]
        values = formulas.similarities(*leaves, normalize).gather(1, index.cpu().clamp_min(0))
        return torch.autograd.grad((values.float() * weight)[found].sum(), leaves)

    def exact() -> list[Tensor]:
        leaves = [x.double().requires_grad_() for x in (query, bank)]
        values = formulas.similarities(*leaves, normalize).gather(1, index.cpu().clamp_min(0))
        return torch.autograd.grad((values * weight.double())[found].sum(), leaves)

    if not found.any():
        assert all((x == 0).all() for x in ours)
        return
    assert [x.dtype for x in ours] == [dtype, dtype]
    assert_as_good_as_plain(ours, selected(dtype), exact(), terms=k)
    assert_as_good_as_plain(ours, selected(torch.float32), exact(), terms=k)


def test_identical_rows_come_in_order(backend: str, device: str) -> None:
    query, bank = torch.randn(5, 16, device=device), torch.randn(1, 16, device=device).expand(300, 16)
    for normalize in (True, False):
        _, index = hard_negatives(query, bank, 40, normalize=normalize)
        assert torch.equal(index.cpu(), torch.arange(40).expand(5, 40))


@pytest.mark.parametrize("k", [1, 40, 64, 100])
@pytest.mark.parametrize("better", [1, 39, 50, 90])
def test_ties_stay_in_order_when_better_rows_come_late(backend: str, device: str, k: int, better: int) -> None:
    bank = torch.zeros(400, 3, device=device)
    bank[152 : 152 + better] = 1.0
    _, index = hard_negatives(torch.ones(4, 3, device=device), bank, k, normalize=False)
    expected = [*range(152, 152 + better), *range(152)][:k]
    assert index.tolist() == [expected] * 4


@pytest.mark.parametrize("function", ["hard_negatives", "action_contrast"])
def test_rows_without_candidates(backend: str, device: str, function: str) -> None:
    """All of the bank masked for some queries, too little left for others: -1 and -inf, and gradients stay finite."""
    query = torch.randn(4, 8, device=device, requires_grad=True)
    bank = torch.randn(6, 8, device=device, requires_grad=True)
    labels = {
        "query_labels": torch.tensor([0, 1, 2, 5], device=device),
        "bank_labels": torch.tensor([0, 0, 0, 0, 1, -1], device=device),
    }
    if function == "hard_negatives":
        similarity, index = hard_negatives(query, bank, 5, **labels)
    else:
        _, similarity, index = action_contrast(query, query.detach(), bank, 5, **labels)
    assert (index >= 0).sum(-1).tolist() == [1, 4, 5, 5]
    assert torch.equal(similarity == -torch.inf, index == -1)
    assert index[0].tolist() == [4, -1, -1, -1, -1]
    torch.where(index >= 0, similarity, 0.0).sum().backward()
    assert query.grad.isfinite().all() and bank.grad.isfinite().all()
    assert (bank.grad[5] == 0).all() and (bank.grad[4] != 0).any()

    alone = {"query_labels": torch.zeros(4), "bank_labels": torch.zeros(6)}
    alone = {name: x.to(device, torch.int64) for name, x in alone.items()}
    similarity, index = hard_negatives(query, bank, 2, **alone)
    assert (index == -1).all() and (similarity == -torch.inf).all()


@pytest.mark.parametrize("function", ["hard_negatives", "action_contrast"])
def test_nan_is_never_selected(backend: str, device: str, function: str) -> None:
    query = torch.randn(6, 8, device=device)
    bank = torch.randn(40, 8, device=device)
    query[2, 3] = torch.nan
    bank[7] = torch.nan
    bank[11, 0] = torch.nan
    leaves = [query.requires_grad_(), bank.requires_grad_()]
    if function == "hard_negatives":
        similarity, index = hard_negatives(*leaves, 40)
    else:
        _, similarity, index = action_contrast(leaves[0], query.detach(), leaves[1], 40)
    assert (index[2] == -1).all() and (similarity[2] == -torch.inf).all()
    for i in (0, 1, 3, 4, 5):
        assert index[i, 38:].tolist() == [-1, -1]
        assert sorted(index[i, :38].tolist()) == [j for j in range(40) if j not in (7, 11)]
    grad_query, grad_bank = torch.autograd.grad(torch.where(index >= 0, similarity, 0.0).sum(), leaves)
    good = [0, 1, 3, 4, 5]
    assert grad_query[good].isfinite().all()
    assert grad_bank[[j for j in range(40) if j not in (7, 11)]].isfinite().all()


@pytest.mark.parametrize("k", [1, 2, 31, 300, 2500])
def test_any_k(backend: str, device: str, k: int) -> None:
    query, _, bank = neighbours(11, 300, 20)
    exact = formulas.similarities(query.double(), bank.double())
    similarity, index = hard_negatives(query.to(device), bank.to(device), k)
    assert similarity.shape == index.shape == (11, k)
    kept = min(k, 300)
    torch.testing.assert_close(
        similarity[:, :kept].double().cpu(), exact.sort(descending=True).values[:, :kept], rtol=0, atol=5e-7
    )
    assert (index[:, 300:] == -1).all() and (similarity[:, 300:] == -torch.inf).all()


def test_labels_of_any_integer_type(backend: str, device: str) -> None:
    query, _, bank = (x.to(device) for x in neighbours(9, 30, 8))
    query_labels, bank_labels = (x.to(device) for x in random_labels(9, 30))
    _, expected = hard_negatives(query, bank, 4, query_labels=query_labels, bank_labels=bank_labels)
    for dtype in (torch.int32, torch.int16, torch.int8):
        _, index = hard_negatives(
            query, bank, 4, query_labels=query_labels.to(dtype), bank_labels=bank_labels.to(dtype)
        )
        assert torch.equal(index, expected)
