"""A bank divided among processes holds what one bank would; three processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import run

import action_kernels
from action_kernels import MemoryBank
from action_kernels.distributed import (
    ShardedMemoryBank,
    action_contrast,
    anatomical_contrast,
    gather_rows,
    relation_negatives,
)

WORLD, D = 3, 4
PUSHES = ((2, 0, 5), (0, 0, 0), (1, 1, 1), (0, 9, 2), (40, 3, 0), (0, 0, 30), (3, 4, 4))


def drawn(counts: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[list, list]:
    """Rows and labels of every process: the same numbers on each of them."""
    rows = [torch.randn(count, D).to(dtype) for count in counts]
    return rows, [torch.randint(0, 3, (count,)) for count in counts]


def filled(rank: int, capacity: int = 17, pushes: tuple[tuple[int, ...], ...] = PUSHES, **settings) -> tuple:
    """A divided bank after these pushes, and the whole one that every process has."""
    bank, whole = ShardedMemoryBank(capacity, D, labeled=True, **settings), MemoryBank(capacity, D, None, True)
    for counts in pushes:
        rows, labels = drawn(counts)
        bank.push(rows[rank], labels[rank])
        whole.push(torch.cat(rows), torch.cat(labels))
    return bank, whole


def assert_same(bank: ShardedMemoryBank, whole: MemoryBank) -> None:
    assert len(bank) == len(whole)
    assert torch.equal(bank.rows, whole.rows[bank.slots])
    if whole.labels is not None:
        assert torch.equal(bank.labels, whole.labels[bank.slots])


def slot_for_slot(rank: int, world: int) -> None:
    for capacity in (3, 17, 20, 500):
        for normalize in (True, False):
            for dtype in (torch.float32, torch.bfloat16):
                settings = {"dtype": dtype, "normalize": normalize}
                bank, whole = ShardedMemoryBank(capacity, D, **settings), MemoryBank(capacity, D, **settings)
                assert not len(bank) and not len(bank.rows)
                for counts in PUSHES:
                    rows, _ = drawn(counts)
                    bank.push(rows[rank].requires_grad_())
                    whole.push(torch.cat(rows))
                    assert_same(bank, whole)
                found = bank.gather(to=1)
                assert (found is None) == (rank != 1)
                if found is not None:
                    assert torch.equal(found.features, whole.features)
                    assert torch.equal(found.level, whole.level)
    bank, whole = filled(rank)
    assert_same(bank, whole)
    bank.clear()
    assert not len(bank) and not len(bank.rows)


def own_rows(rank: int, world: int) -> None:
    bank, whole = filled(rank, pushes=PUSHES[:1])
    picked = whole.rows[bank.slots[:1]], whole.labels[bank.slots[:1]]
    bank.push(bank.rows[:1], bank.labels[:1])
    whole.push(*gather_rows(*picked))
    assert_same(bank, whole)


def state_of_each(rank: int, world: int) -> None:
    for pushes in (PUSHES[:1], PUSHES):  # a bank that is not full, and one that is
        bank, whole = filled(rank, pushes=pushes)
        module = torch.nn.ModuleDict({"bank": bank})
        state = {key: value.clone() for key, value in module.state_dict().items()}
        assert set(state) == {f"bank.{name}" for name in ("features", "classes", "level", "place")}
        other = torch.nn.ModuleDict({"bank": ShardedMemoryBank(17, D, labeled=True)})
        other.load_state_dict(state)
        assert_same(other["bank"], whole)
        rows, labels = drawn((2, 3, 1))
        other["bank"].push(rows[rank], labels[rank])
        whole.push(torch.cat(rows), torch.cat(labels))
        assert_same(other["bank"], whole)

        fresh = ShardedMemoryBank(17, D, labeled=True)
        state = bank.state_dict()
        for damage, message in (
            ({"place": torch.tensor([0, 17, 17, rank, 4])}, f"rank {rank}'s of 4 with 17 slots, this bank is rank"),
            ({"place": torch.tensor([0, 17, 17, rank + 1, 3])}, "gather a bank into one before you save it"),
            ({"place": torch.tensor([0, 17])}, "place: must be five integers"),
            ({"features": torch.zeros(2, D)}, r"features: the bank holds \(\d, 4\), the state \(2, 4\)"),
        ):
            with pytest.raises(RuntimeError, match=message):
                fresh.load_state_dict({**state, **damage})
            assert not len(fresh) and not len(fresh.rows)
        with pytest.raises(RuntimeError, match="Missing key.*place"):
            fresh.load_state_dict({name: x for name, x in state.items() if name != "place"})
        fresh.load_state_dict({}, strict=False)
        assert not len(fresh)
        with pytest.raises(RuntimeError, match="Unexpected key.*more"):
            fresh.load_state_dict({**state, "more": torch.zeros(1)})


def another_number_of_processes(rank: int, world: int) -> None:
    """From three to one to two, and the other way."""
    pair = dist.new_group([0, 2])
    for pushes in (PUSHES[:1], PUSHES):
        bank, whole = filled(rank, pushes=pushes)
        saved = bank.gather()
        rows, labels = drawn((2, 3, 1))
        whole.push(torch.cat(rows), torch.cat(labels))
        if rank != 1:
            smaller = ShardedMemoryBank(17, D, labeled=True, group=pair)
            smaller.scatter(saved)
            order = (0, 1) if rank == 0 else (2,)
            smaller.push(*(torch.cat([x[i] for i in order]) for x in (rows, labels)))
            assert_same(smaller, whole)
            saved = smaller.gather(to=1)
        bank = ShardedMemoryBank(17, D, labeled=True)
        bank.scatter(saved, source=2)
        assert_same(bank, whole)
        rows, labels = drawn((1, 0, 4))
        bank.push(rows[rank], labels[rank])
        whole.push(torch.cat(rows), torch.cat(labels))
        assert_same(bank, whole)


def what_does_not_fit(rank: int, world: int) -> None:
    """Everyone raises, nobody has stored anything, and the next push works."""
    bank, whole = filled(rank)
    rows, labels = drawn((2, 2, 2))
    for bad, message in (
        ((rows[0][:, :2], labels[0]), "rows must be"),
        ((rows[0], None), "labels missing"),
        ((rows[0], labels[0][:1]), "labels must hold one class per row"),
        ((rows[0].long(), labels[0]), "rows must be floating"),
        (("rows", labels[0]), "rows must be a torch.Tensor"),
    ):
        expected = message if rank == 1 else "rank 1 was given rows that do not fit"
        with pytest.raises(ValueError, match=expected):
            bank.push(*(bad if rank == 1 else (rows[rank], labels[rank])))
        assert_same(bank, whole)
    with pytest.raises(ValueError, match="ranks 0 and 2 must be given rows alike: dtype is torch.float32 and .*64"):
        bank.push(rows[rank].double() if rank == 2 else rows[rank], labels[rank])
    lost = ShardedMemoryBank(17, D, labeled=True)
    if rank:  # and one process has forgotten to
        lost.load_state_dict(bank.state_dict())
    with pytest.raises(ValueError, match="ranks 0 and 1 must be given rows alike: the number of rows pushed is 0 and"):
        lost.push(rows[rank], labels[rank])
    for to in (-1, 3):
        with pytest.raises(ValueError, match=f"to must be the rank of one of 3 processes, got {to}"):
            bank.gather(to)
    with pytest.raises(ValueError, match="ranks 0 and 1 must be given banks alike: to is 0 and 1"):
        bank.gather(int(rank == 1))
    for given, message in (
        (None, "whole must be a MemoryBank without groups"),
        (MemoryBank(17, D, 1, True), "whole must be a MemoryBank without groups"),
        (MemoryBank(18, D, None, True), "whole must have this bank's capacity 17, got 18"),
        (MemoryBank(17, D), "whole must have this bank's labeled True, got False"),
        (MemoryBank(17, D, None, True, torch.float16), "dtype torch.float32, got torch.float16"),
    ):
        with pytest.raises(ValueError, match=message if rank == 2 else "rank 2 was given banks that do not fit"):
            bank.scatter(given if rank == 2 else None, source=2)
    with pytest.raises(ValueError, match="capacity must be a whole number and at least 1 for each of 3 processes"):
        ShardedMemoryBank(2, D)
    assert_same(bank, whole)
    bank.push(rows[rank], labels[rank])
    whole.push(torch.cat(rows), torch.cat(labels))
    assert_same(bank, whole)


def as_a_module(rank: int, world: int) -> None:
    bank, whole = filled(rank)
    assert not list(bank.parameters()) and not list(bank.buffers())
    assert_same(bank.double(), whole.double())
    assert f"17 in 3 processes, of which this is rank {rank}" in repr(bank)
    unreal = ShardedMemoryBank(17, D, device="meta").to_empty(device="cpu")
    assert not len(unreal) and not len(unreal.rows)


def losses(rank: int, world: int) -> None:
    """Over the divided bank as over the whole, with the bank's own labels."""
    bank, whole = filled(rank, capacity=40)
    counts = (3, 0, 2)
    (students, labels), (teachers, _) = drawn(counts), drawn(counts)
    own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    relation = torch.rand(3, 3)
    for query_labels in (labels, None):
        given = [None if query_labels is None else x for x in (torch.cat(labels), whole.labels, labels[rank])]
        student, mine = (x.clone().requires_grad_() for x in (torch.cat(students), students[rank]))
        settings = {"teacher_temp": 0.1, "reduction": "sum"}
        kl, similarity, index = action_kernels.action_contrast(
            student, torch.cat(teachers), whole.rows, 2, query_labels=given[0], bank_labels=given[1], **settings
        )
        found = action_contrast(mine, teachers[rank], bank, 2, query_labels=given[2], **settings)
        assert torch.equal(found.index, index[own])
        draws = action_kernels.relation_negatives(torch.cat(labels), whole.labels, relation, 6, seed=1)
        drawn_here = relation_negatives(labels[rank], bank, relation, 6, seed=1)
        assert torch.equal(drawn_here, draws[own])
        nce = action_kernels.anatomical_contrast(student, torch.cat(teachers), whole.rows, draws, reduction="sum")
        nce_here = anatomical_contrast(mine, teachers[rank], bank, drawn_here, reduction="sum")
        (kl + similarity.sum() + nce).backward()
        (found.distillation + found.similarity.sum() + nce_here).backward()
        torch.testing.assert_close(mine.grad, student.grad[own], rtol=1e-5, atol=1e-5)
    assert not bank.rows.requires_grad
    mine = students[rank].clone().requires_grad_()
    late = action_contrast(mine, teachers[rank], bank, 2).similarity.sum()
    bank.push(students[rank], labels[rank])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        late.backward()


CHECKS = (
    slot_for_slot,
    own_rows,
    state_of_each,
    another_number_of_processes,
    what_does_not_fit,
    as_a_module,
    losses,
)


def test_three_processes(tmp_path: Path) -> None:
    run(CHECKS, WORLD, tmp_path, detail=True)
