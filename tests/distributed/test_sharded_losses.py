"""Losses over a divided bank: what one process computes over the whole, with any number of processes."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import problems
import pytest
import torch
from problems import K, Problem, assert_near, leaves, problem
from processes import run
from torch.utils.checkpoint import checkpoint

import action_kernels
from action_kernels import backends, distributed, use_backend
from action_kernels.backends import cpu
from action_kernels.operators import registration

contrast = import_module("action_kernels.distributed.action_contrast")  # whose name its function has taken
TEMPS = {"student_temp": 0.2, "teacher_temp": 0.1}
EXACT, ROUNDED = 1e-13, 2e-6


def labels_of(p: Problem, wanted: bool) -> tuple[dict, dict]:
    """For the whole, and for this process's part."""
    if not wanted:
        return {}, {}
    return (
        {"query_labels": p.query_labels, "bank_labels": p.bank_labels},
        {"query_labels": p.query_labels[p.own], "bank_labels": p.part(p.bank_labels)},
    )


def compare_contrast(p: Problem, error: float, *, labels: bool, normalize: bool, with_bank: bool, chunk: int) -> None:
    """Values and gradients of both results at once, every query with an upstream gradient of its own."""
    of_whole, of_part = labels_of(p, labels)
    n = len(p.student)
    g, h = torch.randn(n, dtype=torch.float64), torch.randn(n, K, dtype=torch.float64)
    student, bank = leaves(p.student.double(), p.bank.double())
    with use_backend("reference"):
        kl, similarity, index = action_kernels.action_contrast(
            student, p.teacher.double(), bank, K, **TEMPS, **of_whole, reduction="none", normalize=normalize
        )
    there = index >= 0
    ((kl * g).sum() + (torch.where(there, similarity, 0.0) * h).sum()).backward()

    mine, part = leaves(p.student[p.own], p.part(p.bank))
    found = distributed.action_contrast(
        mine,
        p.teacher[p.own],
        part if with_bank else part.detach(),
        K,
        **TEMPS,
        **of_part,
        reduction="none",
        normalize=normalize,
        chunk=chunk,
    )
    assert torch.equal(found.index, p.named(index)[p.own])
    assert_near(found.distillation, kl[p.own], error, "kl")
    assert_near(found.similarity, similarity[p.own], error, "similarity")
    dtype = found.distillation.dtype
    loss = (found.distillation * g[p.own].to(dtype)).sum()
    loss = loss + (torch.where(there[p.own], found.similarity, 0.0) * h[p.own].to(dtype)).sum()
    loss.backward()
    scale = student.grad.abs().max().item()
    assert mine.grad.dtype == p.student.dtype
    assert ((mine.grad - student.grad[p.own]).abs() <= error * scale).all(), "gradient in the student"
    if with_bank:
        scale = bank.grad.abs().max().item()
        worst = (part.grad - p.part(bank.grad)).abs()
        assert (worst <= error * scale).all(), f"gradient in the bank {worst.max() / scale}"


def contrast_in_float64(rank: int, world: int) -> None:
    for chunk in (1, 8, 1000):
        for labels, normalize, with_bank in ((True, True, True), (False, False, True), (True, False, False)):
            p = problem(rank, world)
            compare_contrast(p, EXACT, labels=labels, normalize=normalize, with_bank=with_bank, chunk=chunk)


def contrast_in_float32(rank: int, world: int) -> None:
    for normalize in (True, False):
        p = problem(rank, world, torch.float32)
        compare_contrast(p, ROUNDED, labels=True, normalize=normalize, with_bank=True, chunk=4)


def sharp_softmaxes(rank: int, world: int) -> None:
    """At the default temperatures a rounding of a similarity counts a hundred times; it counts as in one process."""
    p = problem(rank, world, torch.float32)
    g = torch.randn(len(p.student))
    truth, whole = leaves(p.student.double(), p.bank.double()), leaves(p.student, p.bank)
    for rows in (truth, whole):
        kl = action_kernels.contrastive_distillation(rows[0], p.teacher.to(rows[0].dtype), rows[1], reduction="none")
        (kl * g).sum().backward()
    mine = leaves(p.student[p.own], p.part(p.bank))
    kl = distributed.contrastive_distillation(mine[0], p.teacher[p.own], mine[1], reduction="none", chunk=4)
    (kl * g[p.own]).sum().backward()
    for ours, one, exact, cut in zip(mine, whole, truth, (lambda x: x[p.own], p.part), strict=True):
        scale = exact.grad.abs().max()
        allowed = 1.5 * (one.grad - exact.grad).abs().max() + ROUNDED * scale
        assert ((ours.grad - cut(exact.grad)).abs() <= allowed).all()


def half_precision(rank: int, world: int) -> None:
    """Computed in float32; gradients in the rows' own dtype, of memory in any order."""
    p = problem(rank, world, torch.bfloat16)
    truth = leaves(p.student.double(), p.bank.double())
    kl = action_kernels.contrastive_distillation(truth[0], p.teacher.double(), truth[1], **TEMPS, reduction="none")
    kl.sum().backward()
    mine = leaves(p.student[p.own], p.part(p.bank))
    teacher = p.teacher[p.own].mT.contiguous().mT
    found = distributed.contrastive_distillation(mine[0], teacher, mine[1], **TEMPS, reduction="none", chunk=4)
    assert found.dtype == torch.float32
    assert_near(found, kl[p.own], ROUNDED, "kl")
    found.sum().backward()
    for ours, exact, cut in zip(mine, truth, (lambda x: x[p.own], p.part), strict=True):
        assert ours.grad.dtype == torch.bfloat16
        assert ((ours.grad - cut(exact.grad)).abs() <= exact.grad.abs().max() * 2.0**-8).all()


def ties_between_the_parts(rank: int, world: int) -> None:
    """Of whole numbers: nearly every similarity is there many times, in several parts."""
    for dtype in (torch.float64, torch.float32):
        for labels in (False, True):
            p = problem(rank, world, dtype, whole_numbers=True)
            of_whole, of_part = labels_of(p, labels)
            similarity, index = action_kernels.hard_negatives(p.student, p.bank, K, **of_whole, normalize=False)
            settings = {**of_part, "normalize": False, "chunk": 3}
            found = distributed.hard_negatives(p.student[p.own], p.part(p.bank), K, **settings)
            both = distributed.action_contrast(p.student[p.own], p.teacher[p.own], p.part(p.bank), K, **settings)
            for s, i in (found, both[1:]):
                assert torch.equal(s, similarity[p.own]) and torch.equal(i, p.named(index)[p.own])


def one_result_alone(rank: int, world: int) -> None:
    """Backward through one result, in turn; the divergence's gradient in the student needs nobody else."""
    p = problem(rank, world)
    arguments = p.teacher[p.own], p.part(p.bank), K
    truth = leaves(p.student)[0]
    whole = action_kernels.action_contrast(truth, p.teacher, p.bank, K, **TEMPS, reduction="sum")
    of_kl, of_similarity = (torch.autograd.grad(x.sum(), truth, retain_graph=True)[0] for x in whole[:2])
    mine = leaves(p.student[p.own])[0]
    kl, similarity, _ = distributed.action_contrast(mine, *arguments, **TEMPS, reduction="sum")
    if rank == 0:  # alone: it would wait for the others if it needed them
        (gradient,) = torch.autograd.grad(kl, mine, retain_graph=True)
        assert_near(gradient, of_kl[p.own], 1e-12, "gradient of the divergence")
    (gradient,) = torch.autograd.grad(similarity.sum(), mine)
    assert_near(gradient, of_similarity[p.own], 1e-12, "gradient of the similarities")


def others(p: Problem) -> dict:
    """The other losses: whole and divided, as functions of queries, positives and bank."""
    index = torch.randint(-1, len(p.bank), (len(p.student), 7))
    index[: len(index) // 3] = -1  # queries without a negative
    index[-1, :] = index[-1, 0]  # a row named again and again
    none = {"reduction": "none"}
    of_whole, of_part = labels_of(p, True)

    def hard(function, labels):
        def loss(q, _, b):
            similarity, rows = function(q, b, K, **labels)
            return torch.where(rows >= 0, similarity, 0.0).square().sum(-1)

        return loss

    return {
        "hard_negatives": (hard(action_kernels.hard_negatives, of_whole), hard(distributed.hard_negatives, of_part)),
        "contrastive_distillation": (
            lambda q, _, b: action_kernels.contrastive_distillation(q, p.teacher, b, **TEMPS, **none),
            lambda q, _, b: distributed.contrastive_distillation(q, p.teacher[p.own], b, **TEMPS, **none, chunk=5),
        ),
        "log_sum_exp": (
            lambda q, _, b: action_kernels.log_sum_exp(q, b),
            lambda q, _, b: distributed.log_sum_exp(q, b, chunk=5),
        ),
        "info_nce": (
            lambda q, x, b: action_kernels.info_nce(q, x, b, **none),
            lambda q, x, b: distributed.info_nce(q, x, b, **none, chunk=5),
        ),
        "info_nce, positive_in_bank": (
            lambda q, x, b: action_kernels.info_nce(q, x, b, positive_in_bank=True, **none),
            lambda q, x, b: distributed.info_nce(q, x, b, positive_in_bank=True, **none, chunk=5),
        ),
        "anatomical_contrast": (
            lambda q, x, b: action_kernels.anatomical_contrast(q, x, b, index, **none),
            lambda q, x, b: distributed.anatomical_contrast(q, x, b, p.named(index)[p.own], **none, chunk=5),
        ),
        "anatomical_contrast, unnormalized": (
            lambda q, x, b: action_kernels.anatomical_contrast(q, x, b, index, normalize=False, **none),
            lambda q, x, b: distributed.anatomical_contrast(q, x, b, p.named(index)[p.own], normalize=False, **none),
        ),
        "anatomical_contrast, nothing named": (
            lambda q, x, b: action_kernels.anatomical_contrast(q, x, b, index[:, :0], **none),
            lambda q, x, b: distributed.anatomical_contrast(q, x, b, index[p.own, :0], **none),
        ),
    }


def compare_others(rank: int, world: int, dtype: torch.dtype, error: float) -> None:
    p = problem(rank, world, dtype)
    for name, (whole, divided) in others(p).items():
        g = torch.randn(len(p.student), dtype=torch.float64)
        truth = leaves(*(x.double() for x in (p.student, p.positive, p.bank)))
        with use_backend("reference"):
            value = whole(*truth)
            (value.double() * g).sum().backward()
        for with_bank in (True, False):
            mine = leaves(p.student[p.own], p.positive[p.own], p.part(p.bank))
            found = divided(mine[0], mine[1], mine[2] if with_bank else mine[2].detach())
            assert_near(found, value[p.own], error, name)
            (found * g[p.own].to(found.dtype)).sum().backward()
            for i, (x, y) in enumerate(zip(mine, truth, strict=True)):
                if x.grad is None:  # not a part of this loss
                    assert y.grad is None or (i == 2 and not with_bank), name
                    continue
                part = p.part(y.grad) if i == 2 else y.grad[p.own]
                scale = max(y.grad.abs().max().item(), 1e-300)
                worst = (x.grad - part).abs().max().item() / scale if len(part) else 0.0
                assert worst <= error, f"{name}, gradient {i}: relative error {worst:.3g}"


def others_in_float64(rank: int, world: int) -> None:
    compare_others(rank, world, torch.float64, EXACT)


def others_in_float32(rank: int, world: int) -> None:
    compare_others(rank, world, torch.float32, ROUNDED)


def relation_draws(rank: int, world: int) -> None:
    p = problem(rank, world)
    relation = torch.rand(3, 3)
    draws = action_kernels.relation_negatives(p.query_labels, p.bank_labels, relation, 9, seed=5)
    found = distributed.relation_negatives(p.query_labels[p.own], p.part(p.bank_labels), relation, 9, seed=5)
    assert torch.equal(found, p.named(draws)[p.own])


def no_rows_or_no_queries_anywhere(rank: int, world: int) -> None:
    for lengths, counts in (((0,) * 4, problems.COUNTS), (problems.LENGTHS, (0,) * 4)):
        p = problem(rank, world, lengths=lengths, counts=counts)
        mine, part = leaves(p.student[p.own], p.part(p.bank))
        kl, similarity, index = distributed.action_contrast(mine, p.teacher[p.own], part, K, reduction="none")
        assert not kl.any() and (index == -1).all() and (similarity == -torch.inf).all()
        nce = distributed.info_nce(mine, p.positive[p.own], part, reduction="sum")
        (kl.sum() + nce + torch.where(index >= 0, similarity, 0.0).sum()).backward()
        assert not mine.grad.any() and not part.grad.any()
        assert (distributed.log_sum_exp(mine, part) == -torch.inf).all()


def without_gradients(rank: int, world: int) -> None:
    p = problem(rank, world)
    mine, part = leaves(p.student[p.own], p.part(p.bank))
    seen = distributed.action_contrast(mine, p.teacher[p.own], part, K, **TEMPS)
    with torch.no_grad():
        unseen = distributed.action_contrast(mine, p.teacher[p.own], part, K, **TEMPS)
    for x, y in zip(seen, unseen, strict=True):
        assert torch.equal(x, y) and not y.requires_grad
    assert seen.distillation.requires_grad and not seen.index.requires_grad


def second_derivatives(rank: int, world: int) -> None:
    p = problem(rank, world)
    mine, part = leaves(p.student[p.own], p.part(p.bank))
    for loss in (
        distributed.action_contrast(mine, p.teacher[p.own], part, K)[0],
        distributed.hard_negatives(mine, part, 1)[0].sum(),
        distributed.log_sum_exp(mine, part).sum(),
    ):
        first = torch.autograd.grad(loss, (mine, part), create_graph=True)
        with pytest.raises(RuntimeError, match="second derivative"):
            sum(x.square().sum() for x in first).backward()


def the_same_bits_again(rank: int, world: int) -> None:
    p = problem(rank, world, torch.float32)
    results = []
    for _ in range(2):
        mine, part = leaves(p.student[p.own], p.part(p.bank))
        kl, similarity, _ = distributed.action_contrast(mine, p.teacher[p.own], part, K)
        (kl + similarity[similarity > -2].sum()).backward()
        results.append((kl.detach(), mine.grad, part.grad))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def recomputed(rank: int, world: int) -> None:
    """A checkpoint makes the call's collectives once more in the backward pass, the same on every process."""
    p = problem(rank, world, torch.float32)

    def loss(q: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        kl, similarity, index = distributed.action_contrast(q, p.teacher[p.own], b, K, chunk=5)
        nce = distributed.info_nce(q, p.positive[p.own], b, chunk=5)
        return kl + nce + torch.where(index >= 0, similarity, 0.0).sum()

    results = []
    for reentrant in (None, True, False):
        mine = leaves(p.student[p.own], p.part(p.bank))
        value = loss(*mine) if reentrant is None else checkpoint(loss, *mine, use_reentrant=reentrant)
        value.backward()
        results.append((value, *(x.grad for x in mine)))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def the_reference_takes_few_queries_at_once(rank: int, world: int) -> None:
    usual, contrast.SIMILARITIES = contrast.SIMILARITIES, 20
    compare_contrast(problem(rank, world), EXACT, labels=True, normalize=True, with_bank=True, chunk=1000)
    contrast.SIMILARITIES = usual


def both_passes_run_on_one_backend(rank: int, world: int) -> None:
    """Where the usual one lacks the second, another does both, and the bank's gradient."""
    p = problem(rank, world, torch.float32)
    ran: set[str] = set()

    def spy(operator: str, name: str, *call: Any) -> Callable[..., Any]:
        ran.add(backends.select(call[0], call[1], operator, call[2], name).__name__.rpartition(".")[2])
        return kernel(operator, name, *call)

    kernel, registration.kernel = registration.kernel, spy
    file = import_module("action_kernels.backends.cpu.action_contrast")
    lacking = file.action_contrast_student_gradient
    for wanted in (True, False):
        mine, part = leaves(p.student[p.own], p.part(p.bank))
        student = mine if wanted else mine.detach()
        del file.action_contrast_student_gradient
        backends._function.cache_clear()
        backends._automatic.cache_clear()
        distributed.contrastive_distillation(student, p.teacher[p.own], part, reduction="sum").backward()
        file.action_contrast_student_gradient = lacking
        backends._function.cache_clear()
        backends._automatic.cache_clear()
        if len(part):
            assert ran == {"reference" if wanted else "cpu"}
        ran.clear()
    registration.kernel = kernel


def one_process_computes_what_it_would_alone(rank: int, world: int) -> None:
    """Bit for bit, results and gradients: nothing is scored twice."""
    p = problem(rank, world, torch.float32)
    if world > 1:
        return
    (labels, _), index = labels_of(p, True), torch.randint(-1, len(p.bank), (len(p.student), 7))
    found = []
    for package in (action_kernels, distributed):
        student, positive, bank = leaves(p.student, p.positive, p.bank)
        kl, *selected = package.action_contrast(student, p.teacher, bank, K, **TEMPS, **labels)
        others = (
            package.hard_negatives(student, bank, K, **labels)[0],
            package.log_sum_exp(student, bank, temp=0.2),
            package.info_nce(student, positive, bank, reduction="none"),
            package.anatomical_contrast(student, positive, bank, index, reduction="none"),
        )
        sum(x.nan_to_num(neginf=0.0).sum() for x in (kl, selected[0], *others)).backward()
        found.append([kl, *selected, *others, student.grad, positive.grad, bank.grad])
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))
    exact = p.positive.double()  # which no kernel takes beside rows in float32
    plain, ours = (x.anatomical_contrast(p.student, exact, p.bank, index) for x in (action_kernels, distributed))
    assert_near(ours, plain, ROUNDED, "positives in float64")


ALL = (
    contrast_in_float64,
    one_process_computes_what_it_would_alone,
    contrast_in_float32,
    sharp_softmaxes,
    half_precision,
    ties_between_the_parts,
    one_result_alone,
    others_in_float64,
    others_in_float32,
    relation_draws,
    no_rows_or_no_queries_anywhere,
    without_gradients,
    second_derivatives,
    the_same_bits_again,
    recomputed,
    the_reference_takes_few_queries_at_once,
    *([both_passes_run_on_one_backend] if cpu.unavailable() is None else []),
)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_as_one_process_with_the_whole_bank(world: int, tmp_path: Path) -> None:
    run(ALL, world, tmp_path)


def test_every_process_runs_the_same_collectives(tmp_path: Path) -> None:
    """PyTorch compares their kinds and shapes, call by call."""
    run(ALL, 3, tmp_path, detail=True)
