"""relation_negatives: the draws bit for bit, their distribution, and who is never drawn."""

from __future__ import annotations

import formulas
import pytest
import torch
from torch import Tensor

from action_kernels import relation_negatives


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple, key: tuple, words: tuple) -> None:
    """The published known-answer vectors hold for the tests' own generator, which the draws are held against."""
    assert formulas.philox(counter, key) == words


def draw(device: str, query_labels: Tensor, bank_labels: Tensor, relation: Tensor, k: int, seed: int) -> Tensor:
    moved = (x.to(device) for x in (query_labels, bank_labels, relation))
    return relation_negatives(*moved, k, seed=seed).cpu()


@pytest.mark.parametrize("seed", [0, 1, 12345678901, 2**32 - 1, 2**63 - 1])
@pytest.mark.parametrize(("n", "m", "classes", "k"), [(1, 1, 2, 1), (9, 40, 4, 7), (5, 200, 21, 33), (3, 700, 130, 20)])
def test_draws_bit_for_bit(backend: str, device: str, n: int, m: int, classes: int, k: int, seed: int) -> None:
    query_labels = torch.randint(-1, classes + 1, (n,))
    bank_labels = torch.randint(-1, classes + 2, (m,))
    relation = torch.softmax(torch.randn(classes, classes), dim=-1)
    relation[torch.rand(classes, classes) < 0.1] = 0.0
    index = draw(device, query_labels, bank_labels, relation, k, seed)
    assert index.dtype == torch.int64
    expected = formulas.relation_draws(query_labels.tolist(), bank_labels.tolist(), relation.double().tolist(), k, seed)
    assert index.tolist() == expected


def test_many_equally_likely_classes(backend: str, device: str) -> None:
    """The sum of 300 full weights would pass 2**31, where products with a word overflow: the steps get coarser."""
    query_labels, bank_labels = torch.arange(4), torch.arange(600) % 300
    index = draw(device, query_labels, bank_labels, torch.ones(300, 300), 100, seed=8)
    assert index.tolist() == formulas.relation_draws(
        query_labels.tolist(), bank_labels.tolist(), [[1.0] * 300] * 300, 100, 8
    )


def test_thresholds_are_exclusive(backend: str, device: str) -> None:
    """Weights 1, 2, 0, 3 of six integers: every border is hit, and a threshold belongs to the next class."""
    cumulative, start = [1, 3, 3, 6], [0, 2, 3, 7, 12]
    rows = torch.randperm(12)
    index = torch.ops.action_kernels.relation_negatives(
        torch.zeros(1, 3, dtype=torch.int64, device=device),
        torch.tensor(cumulative, device=device).expand(1, 4, 4),
        torch.tensor([start], device=device),
        rows.unsqueeze(0).to(device),
        200,
        42,
    )
    for query in range(3):
        for i in range(200):
            w0, w1, _, _ = formulas.philox((i, query, 0, 0), (42, 0))
            label = [0, 1, 1, 3, 3, 3][w0 * 6 // 2**32]
            size = start[label + 1] - start[label]
            assert index[0, query, i] == rows[start[label] + w1 * size // 2**32]


def test_groups_draw_for_themselves(backend: str, device: str) -> None:
    query_labels, bank_labels = torch.randint(3, (4, 6)), torch.randint(3, (4, 30))
    relation = torch.rand(4, 3, 3)
    index = draw(device, query_labels, bank_labels, relation, 9, seed=77)
    shared = draw(device, query_labels, bank_labels, relation[2], 9, seed=77)
    for g in range(4):
        expected = formulas.relation_draws(
            query_labels[g].tolist(), bank_labels[g].tolist(), relation[g].double().tolist(), 9, 77, g
        )
        assert index[g].tolist() == expected
    assert torch.equal(shared[2], index[2])


def test_distribution(backend: str, device: str) -> None:
    """Chi-squared: classes by the relation row, then every row of a class alike. The seed is fixed."""
    query_labels = torch.zeros(400, dtype=torch.int64)
    bank_labels = torch.tensor([0] * 5 + [1] * 10 + [2] * 30 + [3] * 15)
    relation = torch.tensor([[9.0, 0.5, 0.2, 0.3], *[[1.0] * 4] * 3])
    index = draw(device, query_labels, bank_labels, relation, 250, seed=3)
    draws = index.numel()
    by_class = bank_labels[index].flatten().bincount(minlength=4).double()
    assert by_class[0] == 0
    expected = draws * torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    assert ((by_class[1:] - expected) ** 2 / expected).sum() < 13.8  # 2 degrees of freedom, p = 0.001
    for label, critical in ((1, 27.9), (2, 58.3), (3, 36.1)):  # p = 0.001
        counts = index[bank_labels[index] == label].bincount(minlength=60).double()[bank_labels == label]
        mean = counts.mean()
        assert ((counts - mean) ** 2 / mean).sum() < critical
    # Queries, draws and seeds are independent streams.
    assert len({tuple(row) for row in index.tolist()}) == 400
    assert not torch.equal(index, draw(device, query_labels, bank_labels, relation, 250, seed=4))
    assert torch.equal(index, draw(device, query_labels, bank_labels, relation, 250, seed=3))
    assert torch.equal(index[:, :10], draw(device, query_labels, bank_labels, relation, 10, seed=3))


def test_who_is_never_drawn(backend: str, device: str) -> None:
    """The own class, classes without rows, rows without a class; and nothing for queries that can draw nothing."""
    query_labels = torch.tensor([0, 1, 2, 3, -1, 4, 2**40, -7])
    bank_labels = torch.tensor([0, 0, 2, 2, -1, 4, 9, 2**40])
    relation = torch.ones(4, 4)
    relation[3] = 0.0
    index = draw(device, query_labels, bank_labels, relation, 64, seed=11)
    assert set(index[0].tolist()) == {2, 3}
    assert set(index[1].tolist()) == {0, 1, 2, 3}
    assert set(index[2].tolist()) == {0, 1}
    assert (index[3:] == -1).all()


def test_senseless_weights_draw_nothing_wrong(backend: str, device: str) -> None:
    """NaN and negative weights count as zero, an infinite one as the largest; indices stay valid."""
    relation = torch.ones(4, 4)
    relation[0] = torch.tensor([1.0, torch.nan, -3.0, 2.0])
    relation[1] = torch.tensor([torch.nan] * 4)
    relation[2] = torch.tensor([1.0, torch.inf, 1.0, 0.0])
    bank_labels = torch.arange(4).repeat(3)
    index = draw(device, torch.arange(4), bank_labels, relation, 50, seed=5)
    assert set(bank_labels[index[0]].tolist()) == {3}
    assert (index[1] == -1).all()
    assert set(bank_labels[index[2]].tolist()) == {1}
    assert set(bank_labels[index[3]].tolist()) == {0, 1, 2}


def test_relation_of_any_dtype_and_device_order(backend: str, device: str) -> None:
    query_labels, bank_labels = torch.randint(3, (9,)), torch.randint(3, (30,))
    weights = torch.randint(0, 5, (3, 3))
    expected = draw(device, query_labels, bank_labels, weights.double(), 8, seed=2)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64):
        assert torch.equal(draw(device, query_labels, bank_labels, weights.to(dtype), 8, seed=2), expected)
    assert torch.equal(draw(device, query_labels.int(), bank_labels.int(), 7 * weights, 8, seed=2), expected)
