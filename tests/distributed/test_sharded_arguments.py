"""What does not fit on one process is an error on all of them, in the same call; none is left waiting."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run

from action_kernels import MemoryBank, use_backend
from action_kernels.backends import cpu
from action_kernels.distributed import (
    ShardedMemoryBank,
    action_contrast,
    agreement,
    anatomical_contrast,
    contrastive_distillation,
    gather_rows,
    hard_negatives,
    info_nce,
    log_sum_exp,
    relation_negatives,
)

D, N, M = 3, 4, 5
ROWS, BANK = torch.ones(N, D), torch.ones(M, D)
LABELS, BANK_LABELS = torch.zeros(N, dtype=torch.int64), torch.zeros(M, dtype=torch.int64)
INDEX = torch.zeros(N, 2, dtype=torch.int64)

# Of each loss: arguments that fit, then others that do not, with what is said where they are given.
CONTRAST = {"student": ROWS, "teacher": ROWS, "bank": BANK, "k": 2}
DISTILLATION = {"student": ROWS, "teacher": ROWS, "bank": BANK}
HARD = {"query": ROWS, "bank": BANK, "k": 2}
LSE = {"query": ROWS, "bank": BANK}
NCE = {"query": ROWS, "positive": ROWS, "bank": BANK}
ANATOMICAL = {**NCE, "index": INDEX}
RELATION = {"query_labels": LABELS, "bank": BANK_LABELS, "class_relation": torch.ones(2, 2), "k": 2, "seed": 0}

UNFIT: list[tuple[Callable, dict[str, Any], dict[str, Any], str]] = [
    (action_contrast, CONTRAST, {"k": 0}, "k must be at least 1, got 0"),
    (action_contrast, CONTRAST, {"k": 1.5}, "k must be an integer, got 1.5"),
    (action_contrast, CONTRAST, {"chunk": 0}, "chunk must be at least 1, got 0"),
    (action_contrast, CONTRAST, {"chunk": 2**70}, "chunk must be an integer of 64 bits"),
    (action_contrast, CONTRAST, {"reduction": "max"}, "reduction must be one of none, mean, sum"),
    (action_contrast, CONTRAST, {"student": ROWS[:, :2]}, "student and teacher must agree in features"),
    (action_contrast, CONTRAST, {"student": "rows"}, "student must be a torch.Tensor, got str"),
    (action_contrast, CONTRAST, {"bank": MemoryBank(3, D)}, "bank must be a torch.Tensor, got MemoryBank"),
    (action_contrast, CONTRAST, {"student": ROWS[:2]}, "teacher must have the shape of student, (2, 3)"),
    (action_contrast, CONTRAST, {"teacher": ROWS.clone().requires_grad_()}, "requiring grad: pass teacher.detach()"),
    (action_contrast, CONTRAST, {"student_temp": -1.0}, "student_temp must be positive"),
    (action_contrast, CONTRAST, {"student_temp": torch.tensor(0.1)}, "student_temp must be a number over a divided"),
    (action_contrast, CONTRAST, {"query_labels": LABELS}, "query_labels and bank_labels go together"),
    (
        action_contrast,
        CONTRAST,
        {"query_labels": LABELS, "bank_labels": BANK_LABELS[1:]},
        "bank_labels must hold one label per row of bank",
    ),
    (contrastive_distillation, DISTILLATION, {"normalize": "no"}, "normalize must be True or False"),
    (
        contrastive_distillation,
        DISTILLATION,
        {"student": ROWS[None], "teacher": ROWS[None], "bank": BANK[None]},
        "student must be [N, D], got shape (1, 4, 3): call once for each group",
    ),
    (hard_negatives, HARD, {"k": -1}, "k must be at least 1, got -1"),
    (hard_negatives, HARD, {"query": ROWS[0]}, "query must be [rows, D]"),
    (hard_negatives, HARD, {"bank": BANK.long()}, "bank must be float16, bfloat16, float32 or float64"),
    (log_sum_exp, LSE, {"temp": 0.0}, "temp must be positive"),
    (info_nce, NCE, {"positive": ROWS[:1]}, "positive must have the shape of query"),
    (info_nce, NCE, {"reduction": None}, "reduction must be one of"),
    (anatomical_contrast, ANATOMICAL, {"index": INDEX[:1]}, "index must be [N, k] for a query of shape (4, 3)"),
    (anatomical_contrast, ANATOMICAL, {"index": INDEX.float()}, "index must hold integers"),
    (relation_negatives, RELATION, {"seed": -1}, "seed must lie in 0 <= seed"),
    (relation_negatives, RELATION, {"bank": BANK}, "bank must hold integers"),
    (relation_negatives, RELATION, {"query_labels": INDEX}, "query_labels and the labels of bank must be [N] and [m]"),
]

ONE_OF_EACH = {loss: (loss, arguments) for loss, arguments, *_ in UNFIT}

UNLIKE: list[tuple[Callable, dict[str, Any], dict[str, Any], str]] = [
    (action_contrast, CONTRAST, {"k": 3}, "k is 2 and 3"),
    (action_contrast, CONTRAST, {"student_temp": 0.2}, "student_temp is 0.1 and 0.2"),
    (action_contrast, CONTRAST, {"chunk": 7}, "chunk is 8192 and 7"),
    (action_contrast, CONTRAST, {"normalize": False}, "normalize is True and False"),
    (action_contrast, CONTRAST, {"student": ROWS.half()}, "dtype of student is torch.float32 and torch.float16"),
    (action_contrast, CONTRAST, {"bank": BANK.bfloat16()}, "dtype of bank is torch.float32 and torch.bfloat16"),
    (
        action_contrast,
        CONTRAST,
        {"query_labels": LABELS, "bank_labels": BANK_LABELS},
        "with labels is False and True",
    ),
    (action_contrast, CONTRAST, {"student": ROWS.clone().requires_grad_()}, "gradient in the student is False and"),
    (hard_negatives, HARD, {"bank": BANK.clone().requires_grad_()}, "gradient in the bank is False and True"),
    (hard_negatives, HARD, {"query": ROWS[:, :2], "bank": BANK[:, :2]}, "D is 3 and 2"),
    (contrastive_distillation, DISTILLATION, {"chunk": 8191}, "chunk is 8192 and 8191"),
    (hard_negatives, HARD, {"chunk": 1}, "chunk is 8192 and 1"),
    (log_sum_exp, LSE, {"chunk": 2}, "chunk is 8192 and 2"),
    (info_nce, NCE, {"chunk": 3}, "chunk is 8192 and 3"),
    (anatomical_contrast, ANATOMICAL, {"chunk": 4}, "chunk is 8192 and 4"),
    (log_sum_exp, LSE, {"temp": 0.2}, "temp is 0.1 and 0.2"),
    (info_nce, NCE, {"positive_in_bank": True}, "positive_in_bank is False and True"),
    (anatomical_contrast, ANATOMICAL, {"index": INDEX[:, :1]}, "columns of index is 2 and 1"),
    (relation_negatives, RELATION, {"seed": 1}, "seed is 0 and 1"),
]


def what_does_not_fit(rank: int, world: int) -> None:
    for turn, (loss, arguments, change, message) in enumerate(UNFIT):
        wrong = turn % world
        expected = re.escape(message) if rank == wrong else f"rank {wrong} was given .* that do not fit"
        with pytest.raises(ValueError, match=expected):
            loss(**(arguments | change if rank == wrong else arguments))
            pytest.fail(f"{loss.__name__}, {change}")


def what_differs(rank: int, world: int) -> None:
    for loss, arguments, change, message in UNLIKE:
        with pytest.raises(ValueError, match=f"ranks 0 and 1 must be given .* alike: {re.escape(message)}"):
            loss(**(arguments | change if rank == 1 else arguments))
            pytest.fail(f"{loss.__name__}, {change}")


def what_is_not_the_same_call(rank: int, world: int) -> None:
    """Any two that wait for others: each process raises, and says what each has called."""
    bank = ShardedMemoryBank(8, D)
    calls: dict[str, Callable[[], object]] = {
        **{loss.__name__: partial(loss, **arguments) for loss, arguments in ONE_OF_EACH.values()},
        "gather_rows": lambda: gather_rows(ROWS),
        "ShardedMemoryBank.push": lambda: bank.push(ROWS),
        "ShardedMemoryBank.gather": bank.gather,
        "ShardedMemoryBank.scatter": lambda: bank.scatter(MemoryBank(8, D)),
    }
    assert len(calls) == 11
    for pair in permutations(calls, 2):
        message = f"ranks 0 and 1 must make the same call, got {pair[0]} and {pair[1]}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            calls[pair[rank]]()
            pytest.fail(str(pair))
    assert not len(bank)
    with pytest.raises(ValueError, match="k must be at least 1" if rank == 1 else "must make the same call"):
        (action_contrast(**{**CONTRAST, "k": 0}) if rank == 1 else info_nce(**NCE))


def a_backend_that_cannot(rank: int, world: int) -> None:
    """One process has named a backend that takes no float64: all know before any query travels."""
    for loss, arguments in ((action_contrast, CONTRAST), (hard_negatives, HARD), (log_sum_exp, LSE)):
        doubles = {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
        error, message = (RuntimeError, "takes float32") if rank == 1 else (ValueError, "rank 1 was given")
        with pytest.raises(error, match=message), use_backend("cpu" if rank == 1 else "reference"):
            loss(**doubles)


def banks_of_their_own_labels(rank: int, world: int) -> None:
    bank, plain = (ShardedMemoryBank(8, D, labeled=labeled) for labeled in (True, False))
    with pytest.raises(ValueError, match="bank_labels must not be given with a ShardedMemoryBank"):
        hard_negatives(ROWS, bank, 1, query_labels=LABELS, bank_labels=BANK_LABELS)
    with pytest.raises(ValueError, match="query_labels and bank_labels go together"):
        hard_negatives(ROWS, plain, 1, query_labels=LABELS)
    with pytest.raises(ValueError, match="bank must have labels, got a ShardedMemoryBank with labeled=False"):
        relation_negatives(LABELS, plain, torch.ones(2, 2), 1, seed=0)
    with pytest.raises(ValueError, match="bank is empty on all processes: positive_in_bank says"):
        info_nce(ROWS, ROWS, bank, positive_in_bank=True)
    assert (hard_negatives(ROWS, bank, 1)[1] == -1).all()


def all_is_well_afterwards(rank: int, world: int) -> None:
    for loss, arguments in ONE_OF_EACH.values():
        loss(**arguments)


@pytest.mark.parametrize(
    ("backend", "devices", "expected"),
    [
        ("cpu:gloo", [], "cpu"),
        ("cpu:gloo,cuda:gloo", ["meta", "cpu"], "meta"),
        ("cpu:gloo,cuda:nccl", ["cpu"], "cpu"),
        ("cuda:nccl", [], "cuda:1"),
        ("cuda:nccl", ["cpu"], "cuda:1"),  # which is an error, and all have to know
    ],
)
def test_counts_travel_where_the_group_can_take_them(
    monkeypatch: pytest.MonkeyPatch, backend: str, devices: list[str], expected: str
) -> None:
    monkeypatch.setattr(dist, "get_backend_config", lambda group: backend)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert agreement.place(None, *(torch.empty(1, device=device) for device in devices)) == torch.device(expected)


def test_two_processes(tmp_path: Path) -> None:
    checks = [
        what_does_not_fit,
        what_differs,
        what_is_not_the_same_call,
        banks_of_their_own_labels,
        all_is_well_afterwards,
    ]
    if cpu.unavailable() is None:
        checks.insert(0, a_backend_that_cannot)
    run(checks, 2, tmp_path, detail=True)
