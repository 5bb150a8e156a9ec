"""anatomical_contrast (InfoNCE over named bank rows) against float64."""

from __future__ import annotations

from collections.abc import Sequence

import formulas
import pytest
import torch
from formulas import DTYPES, assert_as_good_as_plain, differentiate, neighbours
from torch import Tensor

from action_kernels import anatomical_contrast

SHAPES = [(1, 1, 1, 1), (7, 5, 3, 9), (65, 130, 33, 40), (33, 700, 129, 257), (130, 64, 512, 17)]  # N, M, D, k


def example(n: int, m: int, d: int, k: int, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    """query, positive, bank, and an index with repetitions and about one hole in eight."""
    query, positive, bank = neighbours(n, m, d)
    index = torch.randint(m, (n, k))
    index[torch.rand(n, k) < 0.125] = -1
    return [x.to(dtype) for x in (query, positive, bank)], index


def compare(
    rows: Sequence[Tensor], index: Tensor, device: str, rivals: Sequence[torch.dtype], temp: float, normalize: bool
) -> list[Tensor]:
    """Loss and gradients in query, positive and bank, held against plain PyTorch in each dtype of ``rivals``."""
    upstream = torch.randn(rows[0].shape[0])
    ours = differentiate(
        lambda q, p, b: anatomical_contrast(
            q, p, b, index.to(device), temp=temp, reduction="none", normalize=normalize
        ),
        [x.to(device) for x in rows],
        upstream,
    )

    def plain(dtype: torch.dtype) -> list[Tensor]:
        wide = [x.to(dtype) for x in rows]
        return differentiate(lambda q, p, b: formulas.info_nce(q, p, b, index, temp, normalize), wide, upstream)

    exact = plain(torch.float64)
    similarity = 1.0
    if not normalize:
        similarity = formulas.similarities(rows[0].double(), rows[2].double(), False).abs().max().item()
        similarity = max(similarity, (rows[0] * rows[1]).double().sum(-1).abs().max().item())
    for dtype in rivals:
        assert_as_good_as_plain(ours, plain(dtype), exact, temp, similarity, terms=index.shape[1])
    return ours


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64(backend: str, device: str, shape: tuple, dtype: torch.dtype) -> None:
    rows, index = example(*shape, dtype)
    loss, *gradients = compare(rows, index, device, (dtype, torch.float32), temp=0.5, normalize=True)
    assert loss.dtype == torch.float32
    assert [x.dtype for x in gradients] == [dtype] * 3


@pytest.mark.parametrize("temp", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("normalize", [True, False])
def test_temperatures(backend: str, device: str, temp: float, normalize: bool) -> None:
    rows, index = example(65, 130, 33, 40)
    if not normalize:
        rows = [x / x.shape[-1] ** 0.5 for x in rows]
    compare(rows, index, device, (torch.float32,), temp, normalize)


def test_huge_logits_stay_finite_and_exact(backend: str, device: str) -> None:
    query, positive, bank = (torch.randint(-8, 9, (rows, 10)).float() for rows in (40, 40, 90))
    index = torch.randint(90, (40, 30))
    assert formulas.similarities(query, bank, False).abs().max() * 2**6 > 1e4
    for x in compare([query, positive, bank], index, device, (torch.float32,), temp=2.0**-6, normalize=False):
        assert x.isfinite().all()


def test_repeated_rows_count_as_often(backend: str, device: str) -> None:
    rows, _ = example(6, 5, 8, 1)
    index = torch.tensor([[0, 0, 0, 3, 3, -1]]).expand(6, 6)
    compare(rows, index, device, (torch.float32,), temp=0.5, normalize=True)


def test_query_without_negatives_has_no_loss(backend: str, device: str) -> None:
    rows, index = example(4, 9, 8, 5)
    index[1] = -1
    leaves = [x.to(device).requires_grad_() for x in rows]
    loss = anatomical_contrast(*leaves, index.to(device), reduction="none")
    assert loss[1] == 0 and (loss[[0, 2, 3]] > 0).all()
    grad_query, grad_positive, _ = torch.autograd.grad(loss.sum(), leaves)
    assert (grad_query[1] == 0).all() and (grad_positive[1] == 0).all()


def test_foreign_indices_are_skipped(backend: str, device: str) -> None:
    """An index outside the bank never reads outside it."""
    rows, index = example(8, 9, 8, 6)
    rows = [x.to(device) for x in rows]
    wild = torch.where(index < 0, torch.tensor([9, -5, 2**40, -(2**40), 10, 2**62]).expand(8, 6), index)
    skipped = [x.clone().requires_grad_() for x in rows]
    foreign = [x.clone().requires_grad_() for x in rows]
    one = anatomical_contrast(*skipped, index.to(device))
    two = anatomical_contrast(*foreign, wild.to(device))
    assert torch.equal(one, two)
    for a, b in zip(torch.autograd.grad(one, skipped), torch.autograd.grad(two, foreign), strict=True):
        assert torch.equal(a, b)


def test_groups_are_independent(backend: str, device: str) -> None:
    query, positive, bank = (x.to(device) for x in neighbours(9, 40, 16, groups=3))
    index = torch.randint(-1, 40, (3, 9, 12), device=device)
    leaves = [x.requires_grad_() for x in (query, positive, bank)]
    loss = anatomical_contrast(*leaves, index, reduction="none")
    gradients = torch.autograd.grad(loss.sum(), leaves)
    for g in range(3):
        alone = [x[g].detach().requires_grad_() for x in leaves]
        one = anatomical_contrast(*alone, index[g], reduction="none")
        torch.testing.assert_close(loss[g], one)
        for a, b in zip(gradients, torch.autograd.grad(one.sum(), alone), strict=True):
            torch.testing.assert_close(a[g], b, rtol=1e-5, atol=1e-6)


def test_reductions(backend: str, device: str) -> None:
    rows, index = example(12, 40, 16, 7)
    rows, index = [x.to(device) for x in rows], index.to(device)
    loss = anatomical_contrast(*rows, index, reduction="none")
    assert loss.shape == (12,)
    torch.testing.assert_close(anatomical_contrast(*rows, index), loss.mean())
    torch.testing.assert_close(anatomical_contrast(*rows, index, reduction="sum"), loss.sum())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_and_class_means(backend: str, device: str, dtype: torch.dtype) -> None:
    """Transposed storage, a positive expanded over all queries, a strided index: the same numbers."""
    rows, index = example(20, 50, 18, 9, dtype)
    query, _, bank = (x.to(device) for x in rows)
    mean, index = rows[1][:1].to(device), index.to(device)
    upstream = torch.randn(20)

    def plain(q: Tensor, p: Tensor, b: Tensor) -> Tensor:
        return anatomical_contrast(q, p.repeat(20, 1), b, index, reduction="none")

    def views(q: Tensor, p: Tensor, b: Tensor) -> Tensor:
        q, b = (x.T.contiguous().T for x in (q, b))
        return anatomical_contrast(q, p.expand(20, -1), b, index.repeat(1, 2)[:, :9], reduction="none")

    inputs = (query, mean, bank)
    for a, b in zip(differentiate(plain, inputs, upstream), differentiate(views, inputs, upstream), strict=True):
        torch.testing.assert_close(
            a, b, rtol=2 * torch.finfo(a.dtype).eps, atol=4e-6 if a.dtype == torch.float32 else 1e-2
        )


def test_nan_stays_in_its_row(backend: str, device: str) -> None:
    rows, index = example(8, 20, 16, 5)
    index[index == 13] = 12
    index[6, 0] = 17
    index[[0, 1, 2, 3, 4, 5, 7]] = torch.where(index == 17, 16, index)[[0, 1, 2, 3, 4, 5, 7]]
    rows = [x.to(device) for x in rows]
    clean = anatomical_contrast(*rows, index.to(device), reduction="none")
    rows[0][2, 1] = rows[1][5, 0] = rows[2][17, 3] = torch.nan
    rows[2][13] = torch.nan  # named by nobody
    rows[0].requires_grad_()
    dirty = anatomical_contrast(*rows, index.to(device), reduction="none")
    (gradient,) = torch.autograd.grad(dirty.sum(), rows[0])
    good = [0, 1, 3, 4, 7]
    assert dirty[[2, 5, 6]].isnan().all() and gradient[[2, 5, 6]].isnan().all()
    torch.testing.assert_close(dirty[good], clean[good])
    assert gradient[good].isfinite().all()


def test_repeats_bit_for_bit(backend: str, device: str) -> None:
    rows, index = example(130, 600, 40, 64)
    rows = [x.to(device) for x in rows]
    upstream = torch.randn(130)

    def run() -> list[Tensor]:
        return differentiate(
            lambda q, p, b: anatomical_contrast(q, p, b, index.to(device), reduction="none"), rows, upstream
        )

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)
