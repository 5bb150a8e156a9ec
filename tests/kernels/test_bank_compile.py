"""A MemoryBank inside compiled functions: the rows of one outside, from a few graphs in all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import action_kernels
from action_kernels import MemoryBank

DIM = 6
MOST_GRAPHS = 8 if torch.__version__.startswith("2.6.") else 3  # PyTorch 2.6 takes more sizes to be constants


@pytest.fixture(autouse=True)
def _compiles_anew() -> None:
    torch.compiler.reset()
    counters.clear()


def compiled(function: Callable) -> Callable:
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def assert_few_graphs() -> None:
    assert 1 <= counters["stats"]["unique_graphs"] <= MOST_GRAPHS


def banks(capacity: int, groups: int | None, **options) -> tuple[MemoryBank, MemoryBank]:
    return tuple(MemoryBank(capacity, DIM, groups=groups, labeled=True, **options) for _ in range(2))


def batch(size: int, groups: int | None) -> tuple[Tensor, Tensor]:
    shape = (size,) if groups is None else (groups, size)
    return torch.randn(*shape, DIM), torch.randint(3, shape)


@pytest.mark.parametrize("groups, size, capacity", [(None, 10, 36), (2, 9, 27), (None, 1, 5), (None, 40, 36)])
def test_push(groups: int | None, size: int, capacity: int) -> None:
    inside, outside = banks(capacity, groups)
    push = compiled(inside.push)
    for _ in range(16):
        rows = batch(size, groups)
        push(*rows)
        outside.push(*rows)
        assert inside.level.tolist() == outside.level.tolist()
        assert torch.equal(inside.rows, outside.rows) and torch.equal(inside.labels, outside.labels)
    assert_few_graphs()


class Model(torch.nn.Module):
    """Reads its bank, and may then push into it; the distillation alone has its gradient already."""

    def __init__(self, bank: MemoryBank, push: bool) -> None:
        super().__init__()
        self.bank, self.push = bank, push

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        if self.push:
            loss = action_kernels.contrastive_distillation(student, teacher, self.bank.rows)
            self.bank.push(teacher, labels)
            return loss
        result = action_kernels.action_contrast(
            student, teacher, self.bank.rows, 3, query_labels=labels, bank_labels=self.bank.labels
        )
        return result.distillation + result.similarity.clamp_min(-2.0).mean()


@pytest.mark.parametrize("groups, push", [(None, False), (2, True)])
def test_read_inside(groups: int | None, push: bool) -> None:
    one, two = banks(64, groups)
    model, plain = compiled(Model(one, push)), Model(two, push)
    for _ in range(14):  # empty, filling, full, going round
        teacher, labels = batch(10, groups)
        student = torch.randn_like(teacher)
        leaves = [student.clone().requires_grad_() for _ in range(2)]
        losses = [f(leaf, teacher, labels) for f, leaf in zip((model, plain), leaves, strict=True)]
        torch.testing.assert_close(*losses)
        for loss in losses:
            loss.backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
        if not push:
            one.push(teacher, labels)
            two.push(teacher, labels)
        assert torch.equal(one.rows, two.rows)
    assert_few_graphs()


def test_its_own_rows_pushed_inside() -> None:
    inside, outside = banks(8, None, normalize=False)
    for bank in (inside, outside):
        bank.push(torch.arange(8 * DIM).view(8, DIM).float(), torch.arange(8))
    push = compiled(lambda: inside.push(inside.rows[1:6], inside.labels[1:6]))
    for _ in range(6):
        push()
        outside.push(outside.rows[1:6].clone(), outside.labels[1:6].clone())
        assert torch.equal(inside.rows, outside.rows) and torch.equal(inside.labels, outside.labels)
    assert_few_graphs()
