"""What a process holds at its peak over a divided bank, forward and backward: its part, and what a chunk takes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import run
from torch import Tensor

from action_kernels import distributed
from action_kernels.backends import cpu
from benchmarks.measure import peak_meter

MIB = 1 << 20
N, M, D, K, CHUNK = 64, 1 << 18, 64, 8, 64  # queries and rows of each process: a part of 64 MiB
SHARD = 4 * M * D
SPARE = 32 * MIB
VISITORS = CHUNK * (2 * 4 * D + 4 * D + 12 * K + 44)  # as the page on processes has it


def both(q: Tensor, x: Tensor, b: Tensor) -> Tensor:
    kl, similarity, _ = distributed.action_contrast(q, x, b, K, chunk=CHUNK)
    return kl + similarity.sum()


def named(q: Tensor, x: Tensor, b: Tensor) -> Tensor:
    return distributed.anatomical_contrast(q, x, b, torch.randint(2 * M, (N, K)), chunk=CHUNK)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "action_contrast": both,
    "contrastive_distillation": lambda q, x, b: distributed.contrastive_distillation(q, x, b, chunk=CHUNK),
    "hard_negatives": lambda q, x, b: distributed.hard_negatives(q, b, K, chunk=CHUNK)[0].sum(),
    "anatomical_contrast": named,
    "info_nce": lambda q, x, b: distributed.info_nce(q, x, b, chunk=CHUNK),
    "log_sum_exp": lambda q, x, b: distributed.log_sum_exp(q, b, chunk=CHUNK).sum(),
}


def peaks(rank: int, world: int) -> None:
    """Above inputs and results; the similarities of a chunk alone, stored, would be another 64 MiB."""
    student, teacher = torch.randn(2, N, D)
    bank = torch.randn(D).repeat(M, 1).add_(torch.rand(M, 1))
    for to_bank in (False, True):
        for name, loss in LOSSES.items():
            leaves = student.clone().requires_grad_(), bank.detach().requires_grad_(to_bank)
            meter = peak_meter("cpu")
            value = loss(leaves[0], teacher, leaves[1])
            forward = meter.bytes()
            assert forward <= VISITORS + SPARE, f"{name}, forward: {forward / MIB:.1f} MiB"
            meter = peak_meter("cpu")
            value.backward()
            gradients = sum(x.grad.nbytes for x in leaves if x.grad is not None)
            above = meter.bytes() - gradients
            allowed = VISITORS + SPARE + (SHARD if to_bank else 0)  # a chunk's share of the bank's gradient
            assert above <= allowed, f"{name}, backward: {above / MIB:.1f} MiB above its gradients"


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark of /proc/self/status")
@pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))
def test_two_processes(tmp_path: Path) -> None:
    run((peaks,), 2, tmp_path)
