"""MemoryBank against a deque: every row, every label, after any sequence of pushes."""

from __future__ import annotations

import io
from collections import deque

import pytest
import torch

from action_kernels import MemoryBank, action_contrast, contrastive_distillation


def contents(bank: MemoryBank) -> list:
    """Rows with their labels, group by group, in an order that does not depend on the slots."""
    rows = bank.rows if bank.groups else bank.rows.unsqueeze(0)
    labels = bank.labels
    labels = torch.zeros(rows.shape[:-1]) if labels is None else labels.reshape(rows.shape[:-1])
    return [sorted(zip(r.tolist(), c.tolist(), strict=True)) for r, c in zip(rows, labels, strict=True)]


@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize("labeled", [False, True])
@pytest.mark.parametrize("capacity", [1, 5, 36])
def test_equals_a_deque(capacity: int, labeled: bool, groups: int | None) -> None:
    bank = MemoryBank(capacity, 4, groups=groups, labeled=labeled, normalize=False)
    queues = [deque(maxlen=capacity) for _ in range(groups or 1)]
    for size in (0, 1, 3, 6, 0, 2, 5, 40, 7, 36, 35, 37, 1, 73):
        leading = (size,) if groups is None else (groups, size)
        rows = torch.randn(*leading, 4)
        labels = torch.randint(5, leading)
        bank.push(rows, labels if labeled else None)
        for g, queue in enumerate(queues):
            group_rows, group_labels = (rows, labels) if groups is None else (rows[g], labels[g])
            queue.extend(
                zip(group_rows.tolist(), (group_labels if labeled else group_labels * 0).tolist(), strict=True)
            )
        assert len(bank) == len(queues[0])
        assert contents(bank) == [sorted(queue) for queue in queues]
        # and the slots are those of a ring: the same row at a time would have ended in the same places
    single = MemoryBank(capacity, 4, groups=groups, labeled=labeled, normalize=False)
    many = MemoryBank(capacity, 4, groups=groups, labeled=labeled, normalize=False)
    stream = torch.randn(*(() if groups is None else (groups,)), 3 * capacity + 2, 4)
    labels = torch.randint(5, stream.shape[:-1])
    for i in range(stream.shape[-2]):
        single.push(stream.narrow(-2, i, 1), labels.narrow(-1, i, 1) if labeled else None)
    for part, part_labels in zip(stream.split(7, -2), labels.split(7, -1), strict=True):
        many.push(part, part_labels if labeled else None)
    assert torch.equal(single.rows, many.rows)


def test_only_filled_rows_are_visible() -> None:
    bank = MemoryBank(8, 3, labeled=True)
    assert bank.rows.shape == (0, 3) and bank.labels.shape == (0,) and len(bank) == 0
    bank.push(torch.randn(3, 3), torch.arange(3))
    assert bank.rows.shape == (3, 3) and bank.labels.tolist() == [0, 1, 2]
    assert bank.rows.data_ptr() == bank.features.data_ptr()
    bank.clear()
    assert bank.rows.shape == (0, 3)
    assert MemoryBank(8, 3).labels is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_storage_dtype_and_unit_rows(dtype: torch.dtype) -> None:
    rows = 1e5 * torch.randn(6, 16)  # beyond the range of float16 until scaled
    bank = MemoryBank(6, 16, dtype=dtype)
    bank.push(rows)
    assert bank.rows.dtype == dtype
    expected = (rows.double() / rows.double().norm(dim=-1, keepdim=True)).to(dtype)
    torch.testing.assert_close(bank.rows, expected, rtol=torch.finfo(dtype).eps, atol=1e-7)
    raw = MemoryBank(6, 16, dtype=dtype, normalize=False)
    raw.push(rows / 1e5)
    assert torch.equal(raw.rows, (rows / 1e5).to(dtype))


def test_pushed_rows_are_copied_and_detached() -> None:
    rows = torch.randn(4, 3, requires_grad=True)
    labels = torch.arange(4)
    bank = MemoryBank(4, 3, labeled=True, normalize=False)
    bank.push(rows * 1.0, labels)
    before = bank.rows.clone()
    with torch.no_grad():
        rows.zero_()
    labels.zero_()
    assert torch.equal(bank.rows, before) and bank.labels.tolist() == [0, 1, 2, 3]
    assert not bank.rows.requires_grad and not bank.features.requires_grad


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("stored", [5, 8, 11])
@pytest.mark.parametrize("part", [slice(None), slice(1, None), slice(None, None, 2), slice(2, 5)], ids=str)
def test_pushes_its_own_rows(part: slice, stored: int, normalize: bool) -> None:
    """Views of what is overwritten, around the ring's end too."""
    bank, other = (MemoryBank(8, 3, groups=2, labeled=True, normalize=normalize) for _ in range(2))
    rows, labels = torch.randn(2, stored, 3), torch.randint(9, (2, stored))
    bank.push(rows, labels)
    other.push(rows, labels)
    for _ in range(3):
        bank.push(bank.rows[:, part], bank.labels[:, part])
        other.push(other.rows[:, part].clone(), other.labels[:, part].clone())
        assert torch.equal(bank.rows, other.rows) and torch.equal(bank.labels, other.labels)


@pytest.mark.parametrize("pushed", [0, 3, 8, 11])
def test_state_dict_round_trip(pushed: int) -> None:
    bank = MemoryBank(8, 3, groups=2, labeled=True, dtype=torch.bfloat16)
    bank.push(torch.randn(2, pushed, 3), torch.randint(4, (2, pushed)))
    file = io.BytesIO()
    torch.save({"bank": bank.state_dict()}, file)
    file.seek(0)
    other = MemoryBank(8, 3, groups=2, labeled=True, dtype=torch.bfloat16)
    other.push(torch.randn(2, 5, 3), torch.randint(4, (2, 5)))
    other.load_state_dict(torch.load(file, weights_only=True)["bank"])
    for _ in range(3):
        assert len(other) == len(bank)
        assert torch.equal(other.rows, bank.rows) and torch.equal(other.labels, bank.labels)
        rows, labels = torch.randn(2, 3, 3), torch.randint(4, (2, 3))
        bank.push(rows, labels)
        other.push(rows, labels)


def test_follows_its_module() -> None:
    model = torch.nn.ModuleDict({"bank": MemoryBank(4, 3, labeled=True)})
    model["bank"].push(torch.randn(3, 3), torch.arange(3))
    moved = model.to(torch.float64)["bank"]
    assert moved.rows.dtype == torch.float64 and moved.labels.dtype == torch.int64 and len(moved) == 3
    assert not list(model.parameters())
    assert model.to("meta")["bank"].rows.device.type == "meta"


def test_loss_over_a_partly_filled_grouped_bank(backend: str, device: str) -> None:
    """The visible rows of a grouped bank are not contiguous; an empty bank gives a zero with a graph."""
    bank = MemoryBank(10, 6, groups=3, device=device)
    student = torch.randn(3, 4, 6, device=device, requires_grad=True)
    teacher = torch.randn(3, 4, 6, device=device)
    contrastive_distillation(student, teacher, bank.rows).backward()
    assert (student.grad == 0).all()
    bank.push(torch.randn(3, 7, 6, device=device))
    assert not bank.rows.is_contiguous()
    loss = contrastive_distillation(student, teacher, bank.rows)
    torch.testing.assert_close(loss, contrastive_distillation(student, teacher, bank.rows.contiguous()))
    # The distillation has its gradient already, so that the bank may move on before the backward pass.
    student.grad = None
    bank.push(torch.randn(3, 7, 6, device=device))
    loss.backward()
    assert (student.grad != 0).any()


def test_autograd_refuses_a_bank_overwritten_before_backward(backend: str, device: str) -> None:
    bank = MemoryBank(10, 6, device=device)
    bank.push(torch.randn(10, 6, device=device))
    student = torch.randn(4, 6, device=device, requires_grad=True)
    similarity = action_contrast(student, student.detach(), bank.rows, 3).similarity
    bank.push(torch.randn(2, 6, device=device))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        similarity.sum().backward()


def test_errors_name_the_argument() -> None:
    for arguments, match in (
        ({"capacity": 0, "dim": 3}, "capacity must be a whole number and at least 1, got 0"),
        ({"capacity": 3, "dim": 0}, "dim must be a whole number and at least 1, got 0"),
        ({"capacity": 3, "dim": 3, "groups": 0}, "groups must be a whole number and at least 1, got 0"),
        ({"capacity": 8.0, "dim": 3}, "capacity must be a whole number and at least 1, got 8.0"),
        ({"capacity": 3, "dim": 3, "dtype": torch.int64}, "dtype must be a floating type, got torch.int64"),
    ):
        with pytest.raises(ValueError, match=match):
            MemoryBank(**arguments)
    plain, grouped = MemoryBank(4, 3), MemoryBank(4, 3, groups=2, labeled=True)
    for bank, rows, labels, match in (
        (plain, torch.randn(2, 5), None, r"rows must be \[B, 3\], got shape \(2, 5\)"),
        (plain, torch.randn(3), None, r"rows must be \[B, 3\], got shape \(3,\)"),
        (plain, torch.ones(2, 3, dtype=torch.int64), None, "rows must be floating, got torch.int64"),
        (plain, torch.randn(2, 3, device="meta"), None, "rows must be on the bank's device cpu, got meta"),
        (plain, torch.randn(2, 3), torch.zeros(2), r"labels of shape \(2,\) given to a bank with labeled=False"),
        (plain, [[1.0, 2.0, 3.0]], None, "rows must be a torch.Tensor, got list"),
        (grouped, torch.randn(2, 1, 3), [[0], [1]], "labels must be a torch.Tensor, got list"),
        (grouped, torch.randn(3, 1, 3), None, r"rows must be \[2, B, 3\], got shape \(3, 1, 3\)"),
        (grouped, torch.randn(2, 1, 3), None, r"labels missing for \(2, 1, 3\) rows"),
        (grouped, torch.randn(2, 1, 3), torch.zeros(2, 2).long(), r"got shapes \(2, 2\) and \(2, 1, 3\)"),
        (grouped, torch.randn(2, 1, 3), torch.zeros(2, 1), "labels must hold integers, got torch.float32"),
    ):
        with pytest.raises(ValueError, match=match):
            bank.push(rows, labels)
        assert len(bank) == 0


@pytest.mark.parametrize("scale", [1e-30, 1e20, 1e30])
def test_rows_of_any_length_are_stored_at_unit_length(scale: float) -> None:
    rows = torch.randn(3, 8)
    bank = MemoryBank(4, 8)
    bank.push(rows * scale)
    expected = torch.nn.functional.normalize(rows, dim=-1) if scale > 1 else rows * scale / 1e-12
    torch.testing.assert_close(bank.rows, expected)
