"""PyTorch's own division of tensors among processes: DTensors as arguments, networks wrapped by fully_shard."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from problems import D, K, Problem, assert_near, problem
from processes import run
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import action_kernels
from action_kernels import MemoryBank, distributed
from action_kernels.distributed import ShardedMemoryBank, gather_rows

LABELS, INDEX = torch.zeros(4, dtype=torch.int64), torch.zeros(4, 2, dtype=torch.int64)
ROWS, BANK, BANK_LABELS = torch.ones(4, 3), torch.ones(6, 3), torch.zeros(6, dtype=torch.int64)
PAIR = {"query_labels": LABELS, "bank_labels": BANK_LABELS}

# Tensors that every operator takes; the same names in both packages, but for those at the end.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "contrastive_distillation": {"student": ROWS, "teacher": ROWS, "bank": BANK},
    "hard_negatives": {"query": ROWS, "bank": BANK, "k": 2, **PAIR},
    "action_contrast": {"student": ROWS, "teacher": ROWS, "bank": BANK, "k": 2, **PAIR},
    "anatomical_contrast": {"query": ROWS, "positive": ROWS, "bank": BANK, "index": INDEX},
    "info_nce": {"query": ROWS, "positive": ROWS, "bank": BANK},
    "log_sum_exp": {"query": ROWS, "bank": BANK},
}
DRAWS = {"class_relation": torch.ones(2, 2), "k": 2, "seed": 0}
TEMPERATURES = {"contrastive_distillation": "student_temp", "anatomical_contrast": "temp", "log_sum_exp": "temp"}


def refused(function: Callable[..., Any], arguments: dict[str, Any], name: str) -> None:
    divided = distribute_tensor(arguments[name], init_device_mesh("cpu", (dist.get_world_size(),)), [Shard(0)])
    message = f"{name} must be an ordinary tensor, got a DTensor of shape {tuple(divided.shape)}: pass {name}.full_"
    with pytest.raises(ValueError, match=re.escape(message) + ".*to_local.* action_kernels.distributed"):
        function(**{**arguments, name: divided})
        pytest.fail(f"{function}, {name}")


def dtensors_are_refused_with_advice(rank: int, world: int) -> None:
    """Whichever argument is one; all processes raise."""
    for operator, arguments in ARGUMENTS.items():
        for name, value in arguments.items():
            if isinstance(value, Tensor):
                refused(getattr(action_kernels, operator), arguments, name)
                refused(getattr(distributed, operator), arguments, name)
    for operator, name in TEMPERATURES.items():
        refused(getattr(action_kernels, operator), {**ARGUMENTS[operator], name: torch.tensor([0.1])}, name)
    for name in (*PAIR, "class_relation"):
        refused(action_kernels.relation_negatives, {**PAIR, **DRAWS}, name)
    for name in ("query_labels", "bank", "class_relation"):
        arguments = {"query_labels": LABELS, "bank": BANK_LABELS, **DRAWS}
        refused(distributed.relation_negatives, arguments, name)
    for push in (MemoryBank(8, 3, labeled=True).push, ShardedMemoryBank(8, 3, labeled=True).push, gather_rows):
        for name in ("rows", "labels"):
            refused(push, {"rows": ROWS, "labels": LABELS}, name)


def the_advice_is_sound(rank: int, world: int) -> None:
    """Of queries and a bank divided evenly by their first dimension: values and gradients of one process."""
    p = problem(rank, world, counts=(4,) * world, lengths=(6,) * world)
    bank = torch.cat([p.bank[r::world] for r in range(world)])  # so that a part's rows are this process's slots
    mesh = init_device_mesh("cpu", (world,))
    whole = p.student.clone().requires_grad_()
    action_kernels.contrastive_distillation(whole, p.teacher, bank, reduction="sum").backward()
    student, teacher, rows = (distribute_tensor(x, mesh, [Shard(0)]) for x in (p.student, p.teacher, bank))
    student.requires_grad_()
    loss = distributed.contrastive_distillation(
        student.to_local(), teacher.to_local(), rows.to_local(), reduction="sum"
    )
    loss.backward()
    assert student.grad is not None
    assert_near(student.grad.full_tensor(), whole.grad, 1e-13, "to_local")
    student.grad = None
    loss = action_kernels.contrastive_distillation(*(x.full_tensor() for x in (student, teacher, rows)))
    (loss * len(p.student)).backward()
    assert_near(student.grad.full_tensor(), whole.grad, 1e-13, "full_tensor")


def mean_of_all(operators: Any, features: Tensor, positive: Tensor, bank: Any, **labels: Tensor | None) -> Tensor:
    """Of every loss, over the queries; the operators of either package."""
    kl, similarity, index = operators.action_contrast(features, positive, bank, K, **labels)
    nce = operators.info_nce(features, positive, bank)
    named = operators.anatomical_contrast(features, positive, bank, index)
    return kl + torch.where(index >= 0, similarity, 0.0).mean() + nce + named


def updated(
    p: Problem, own: slice, network: nn.Module, loss: Callable[..., Tensor], push: Callable[[Tensor, Tensor], None]
) -> list[Tensor]:
    """The parameters after two updates by some queries, each followed by a push."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        loss(network(p.student[own]), p.positive[own], p.query_labels[own]).backward()
        optimizer.step()
        with torch.no_grad():
            push(network(p.positive[own]), p.query_labels[own])
    return list(network.state_dict().values())


def networks_that_are_fully_sharded(rank: int, world: int) -> None:
    """Beside a bank that every process holds, and beside one that is divided: the updates are those of one process."""
    p = problem(rank, world, counts=(4,) * world)

    def network(wrapped: bool) -> nn.Module:
        torch.manual_seed(1)  # the same on all of them
        layers = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, D)).double()
        return fully_shard(layers, mesh=init_device_mesh("cpu", (world,))) if wrapped else layers

    def held() -> tuple[MemoryBank, Callable[..., Tensor]]:
        bank = MemoryBank(30, D, labeled=True, dtype=torch.float64)
        bank.push(p.bank, p.bank_labels)
        return bank, lambda features, positive, labels: mean_of_all(
            action_kernels, features, positive, bank.rows, query_labels=labels, bank_labels=bank.labels
        )

    bank, loss = held()
    truth = updated(p, slice(None), network(False), loss, bank.push)
    for x, y in zip(truth, network(False).parameters(), strict=True):
        assert (x - y).abs().max() > 1e-3  # they have moved
    copies, loss = held()
    replicated = updated(p, p.own, network(True), loss, lambda *rows: copies.push(*gather_rows(*rows)))
    shared = ShardedMemoryBank(30, D, labeled=True, dtype=torch.float64)
    mine = slice(None) if rank == 0 else slice(0)
    shared.push(p.bank[mine], p.bank_labels[mine])

    def over_all(features: Tensor, positive: Tensor, labels: Tensor) -> Tensor:
        return mean_of_all(distributed, features, positive, shared, query_labels=labels)

    divided = updated(p, p.own, network(True), over_all, shared.push)
    for found in (replicated, divided):
        for x, y in zip(found, truth, strict=True):
            assert isinstance(x, DTensor)
            assert_near(x.full_tensor(), y, 1e-12, "a parameter")


def test_two_processes(tmp_path: Path) -> None:
    checks = [dtensors_are_refused_with_advice, the_advice_is_sound]
    if hasattr(torch.cpu.Stream, "record_event"):  # else this PyTorch's fully_shard needs a GPU
        checks.append(networks_that_are_fully_sharded)
    run(checks, 2, tmp_path)
