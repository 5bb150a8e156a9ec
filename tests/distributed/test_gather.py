"""Rows of all processes on each of them: three processes of gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import run

from action_kernels import MemoryBank
from action_kernels.distributed import gather_rows

WORLD = 3
COUNTS = (2, 0, 5)
D = 3


def rows_of(rank, count, dtype=torch.float32):
    return (torch.arange(count * D).view(count, D) + 100 * rank).to(dtype), torch.arange(count) + 10 * rank


def everything(dtype=torch.float32):
    parts = [rows_of(rank, count, dtype) for rank, count in enumerate(COUNTS)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def rows_and_labels(rank, world):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        rows, labels = rows_of(rank, COUNTS[rank], dtype)
        every_row, every_label = everything(dtype)
        found = gather_rows(rows.requires_grad_(), labels.int())
        assert torch.equal(found[0], every_row) and not found[0].requires_grad
        assert torch.equal(found[1], every_label) and found[1].dtype == torch.int64
        assert gather_rows(rows)[1] is None
    columns = torch.arange(6.0).view(3, 2).T  # not contiguous
    assert torch.equal(gather_rows(columns)[0], columns.repeat(WORLD, 1))


def equal_banks(rank, world):
    bank = MemoryBank(6, D, labeled=True, normalize=False)
    for _ in range(2):
        bank.push(*gather_rows(*rows_of(rank, COUNTS[rank])))
    rows, labels = (torch.cat([x, x])[-6:] for x in everything())
    order, expected = bank.rows[:, 0].argsort(), rows[:, 0].argsort()
    assert torch.equal(bank.rows[order], rows[expected]) and torch.equal(bank.labels[order], labels[expected])


def nothing_anywhere(rank, world):
    rows, labels = gather_rows(torch.zeros(0, D), torch.zeros(0, dtype=torch.int64))
    assert rows.shape == (0, D) and labels.shape == (0,)


def bad_input_on_one(rank, world):
    """Everyone raises, none waits, and the next collective still works."""
    with pytest.raises(ValueError, match="must be floating" if rank == 1 else "rank 1 was given rows that do not fit"):
        gather_rows(torch.zeros(2, D, dtype=torch.int64 if rank == 1 else torch.float32))
    with pytest.raises(ValueError, match="of shape" if rank == 2 else "rank 2 was given rows"):
        gather_rows(torch.zeros((2, D)[: 2 * (rank != 2)]))
    for odd in (torch.zeros(2, D + 1), torch.zeros(2, D, dtype=torch.float64)):
        with pytest.raises(ValueError, match="ranks 0 and 2 must be given rows alike"):
            gather_rows(odd if rank == 2 else torch.zeros(2, D))
    with pytest.raises(ValueError, match="must be given rows alike"):
        gather_rows(torch.zeros(2, D), torch.zeros(2, dtype=torch.int64) if rank else None)
    with pytest.raises(ValueError, match=r"labels must be integers \[2\]" if rank == 0 else "rank 0 was given"):
        gather_rows(torch.zeros(2, D), torch.zeros(3 if rank == 0 else 2, dtype=torch.int64))
    nothing_anywhere(rank, world)


def alone(rank, world):
    group = [dist.new_group([other]) for other in range(WORLD)][rank]
    rows, labels = rows_of(rank, 4)
    found = gather_rows(rows, labels, group=group)
    assert torch.equal(found[0], rows) and torch.equal(found[1], labels)


def test_three_processes(tmp_path: Path):
    checks = (rows_and_labels, equal_banks, nothing_anywhere, bad_input_on_one, alone)
    run(checks, WORLD, tmp_path)
