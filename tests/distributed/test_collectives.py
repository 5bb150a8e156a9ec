"""Which collectives a call makes: the same on every process whatever it was given, and no more bytes than needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from problems import K, leaves, problem
from processes import run

from action_kernels import distributed
from benchmarks.collectives import recorded


def the_same_on_all(rank: int, world: int) -> None:
    p = problem(rank, world)
    part, draws = p.part(p.bank), torch.randint(0, 20, (p.counts[rank], 3))

    def both(q: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        kl, similarity, index = distributed.action_contrast(q, p.teacher[p.own], b, K, chunk=5)
        return kl + torch.where(index >= 0, similarity, 0.0).sum()

    losses: dict[str, Callable[..., torch.Tensor]] = {
        "both": both,
        "hardest": lambda q, b: distributed.hard_negatives(q, b, 2, chunk=5)[0].sum(),
        "named": lambda q, b: distributed.anatomical_contrast(q, p.positive[p.own], b, draws, chunk=5),
        "all": lambda q, b: distributed.info_nce(q, p.positive[p.own], b, chunk=5),
    }
    for name, loss in losses.items():
        for with_bank in (True, False):
            mine, bank = leaves(p.student[p.own], part)
            with recorded() as calls:
                value = loss(mine, bank if with_bank else part)
                forward = len(calls)
                value.backward()
            names: list[list[str]] = [[] for _ in range(world)]
            dist.all_gather_object(names, [call.name for call in calls])
            assert all(theirs == names[0] for theirs in names), name
            assert len(names[0]) >= 1 + 2 * 4, name  # counts, then out and home for each of four trips
            if name in ("named", "all") and not with_bank:
                assert forward == len(calls), name  # backward needs nobody


def bytes_on_the_way(rank: int, world: int) -> None:
    """As the page on processes has it."""
    n, d, k = 8, 6, 3
    p = problem(rank, world, torch.float32, counts=(n,) * 4)
    arguments = p.teacher[p.own], p.part(p.bank), k
    labels = {"query_labels": p.query_labels[p.own], "bank_labels": p.part(p.bank_labels)}
    with recorded() as calls:
        result = distributed.action_contrast(p.student[p.own].requires_grad_(), *arguments, **labels, reduction="sum")
        result.distillation.backward()
    assert sum(call.sent for call in calls[1:]) == (world - 1) * n * (2 * d * 4 + 4 * d + 12 * k + 44)
    assert len(calls) == 1 + 4


def no_more_than_a_chunk_at_once(rank: int, world: int) -> None:
    """However many queries there are."""
    n, d, k = 50, 6, 3
    p = problem(rank, world, torch.float32, counts=(n,) * 4)
    arguments = p.teacher[p.own], p.part(p.bank), k
    with recorded() as calls:
        result = distributed.action_contrast(
            p.student[p.own].requires_grad_(), *arguments, reduction="sum", chunk=2 * world
        )
        (result.distillation + result.similarity.sum()).backward()
    widest = max(2 * d * 4, 4 + 8 + 8 + 12 * k, d * 4 + 12 * k)  # bytes of a query: out, home, out to the selected rows
    assert max(call.sent for call in calls[1:]) == (world - 1) * 2 * widest
    assert len(calls) == 1 + n // 2 * (4 + 2)


def test_four_processes(tmp_path: Path) -> None:
    run((the_same_on_all, bytes_on_the_way, no_more_than_a_chunk_at_once), 4, tmp_path)
