"""Soft-target distillation and hard negatives over a divided bank.

Queries visit every part of the bank. What a part has found goes home and is merged there; the log-sum-exps over the
whole bank then go out once more, since the gradient in the student is no sum of the parts' own gradients: every part
gives what its rows contribute to it, and these add up. Both passes over a part score its rows, so that a gradient costs
five products where a whole bank needs three to five.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..backends import pinned
from ..dtypes import working_dtype
from ..operators import ActionContrastResult, arguments
from ..operators.action_contrast import contrast as contrast_with_whole
from ..operators.registration import call, keep, once_differentiable
from ..operators.shapes import reduce
from .agreement import Given, agree
from .bank import ShardedMemoryBank
from .merge import merge_statistics
from .selection import merge_candidates, selection_gradient
from .shard import (
    Shard,
    backend_for,
    check_backend,
    check_chunk,
    check_rows,
    constant,
    group_of,
    is_whole,
    shard_of,
    wants_grad,
)
from .trips import CHUNK, Trip, summed, trips

SIMILARITIES = 1 << 24
"""How many the reference may store at once, where no other backend takes the dtypes or has what is needed."""


def action_contrast(
    student: Tensor,
    teacher: Tensor,
    bank: ShardedMemoryBank | Tensor,
    k: int,
    *,
    student_temp: float = 0.1,
    teacher_temp: float = 0.01,
    query_labels: Tensor | None = None,
    bank_labels: Tensor | None = None,
    reduction: str = "mean",
    normalize: bool = True,
    chunk: int = CHUNK,
    group: dist.ProcessGroup | None = None,
) -> ActionContrastResult:
    """:func:`action_kernels.action_contrast` of this process's queries over a bank that all processes share.

    A collective call: all processes make it, those without queries too. Results and gradients are those of one process
    with the whole bank. The gradient of the divergence in the student needs no other process; that of the similarities,
    and every gradient in the bank, is collective: then all processes go backward through this call, or none.

    Args:
        student: [N, D] of this process; any N, 0 too, and another one on every process.
        teacher: [N, D], must not require grad.
        bank: the shared bank; or this process's part, [m, D] with any m, differentiable, whose row j is slot
            ``j * R + rank`` of R processes' bank.
        k: hard negatives per query, >= 1.
        student_temp: temperature of the student's softmax, a number > 0.
        teacher_temp: likewise.
        query_labels: [N] integers, on all processes or on none. A ``ShardedMemoryBank`` then must have labels.
        bank_labels: [m] integers, with a part that is a tensor.
        reduction: ``"none"``, or ``"mean"`` or ``"sum"`` over the queries of this process.
        normalize: scale every row to unit length first.
        chunk: queries of all processes together that visit at once; what a process holds beside its rows grows with it.
        group: the processes; none: those of the bank, or all.

    Returns:
        The divergence, the hard negatives' similarities, and their slots in the whole bank, as
        :func:`action_kernels.action_contrast` does with rows.

    Raises:
        ValueError: arguments do not fit, here or on another process, or differ between the processes where they must
            not: dtypes, D, ``k``, temperatures, labels or none, ``chunk``, and which of student and bank require grad.
            Every process raises then, none is left waiting.
    """
    return ActionContrastResult(
        *contrast(
            student,
            teacher,
            bank,
            k,
            student_temp,
            teacher_temp,
            query_labels,
            bank_labels,
            reduction,
            normalize,
            chunk,
            group,
        )
    )


class Settings(NamedTuple):
    """Of a call, the same on all processes but for the part of the bank."""

    shard: Shard
    counts: list[int]  # queries of every process
    chunk: int
    k: int
    student_temp: float
    teacher_temp: float
    normalize: bool
    student_grad: bool  # whether it is wanted
    backend: str

    def at_once(self) -> int:
        """Visiting queries that a kernel takes at once."""
        if self.backend == "reference":  # which stores all similarities
            return max(1, SIMILARITIES // max(1, len(self.shard.rows)))
        return max(1, self.chunk)


_STUDENT_GRADIENT = "action_contrast_student_gradient"
_NAMES = (
    *("D", "dtype of student", "dtype of teacher", "dtype of bank", "k", "student_temp", "teacher_temp"),
    *("with labels", "normalize", "chunk", "gradient in the student", "gradient in the bank"),
)


def contrast(
    student: Tensor,
    teacher: Tensor,
    bank: ShardedMemoryBank | Tensor,
    k: int | None,
    student_temp: float,
    teacher_temp: float,
    query_labels: Tensor | None,
    bank_labels: Tensor | None,
    reduction: str,
    normalize: bool,
    chunk: int,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The divergence, and the ``k`` hard negatives of the student if there is a ``k``: similarities and slots."""
    operator = "contrastive_distillation" if k is None else "action_contrast"

    def given() -> Given:
        if k is not None:
            arguments.check_k(k)
        arguments.check_reduction(reduction)
        arguments.check_normalize(normalize)
        check_chunk(chunk)
        shard = shard_of(bank, bank_labels, group, query_labels is not None)
        check_rows(student=student, teacher=teacher, bank=shard.rows)
        constant("student_temp", student_temp, student)
        constant("teacher_temp", teacher_temp, student)
        if teacher.shape != student.shape or teacher.requires_grad:
            raise ValueError(
                f"teacher must have the shape of student, {tuple(student.shape)}, and not require grad, got "
                f"{tuple(teacher.shape)}{', requiring grad: pass teacher.detach()' if teacher.requires_grad else ''}"
            )
        arguments.check_labels("student", student, query_labels, shard.rows, shard.labels)
        check_backend("action_contrast", student, teacher, shard.rows)
        if wants_grad(student):
            check_backend("action_contrast", student, teacher, shard.rows, function=_STUDENT_GRADIENT)
        values = (
            *(student.shape[1], student.dtype, teacher.dtype, shard.rows.dtype, k or 0),
            *(float(student_temp), float(teacher_temp), query_labels is not None, bool(normalize), chunk),
            *(wants_grad(student), wants_grad(shard.rows)),
        )
        return Given([len(student), len(shard.rows)], dict(zip(_NAMES, values, strict=True)))

    members = group_of(bank, group)
    table = agree(operator, "queries and banks", _NAMES, given, members, student, bank)
    shard = shard_of(bank, bank_labels, group, query_labels is not None)
    rows = student, teacher, shard.rows
    second_pass = _STUDENT_GRADIENT if wants_grad(student) else ""
    backend = backend_for("action_contrast", table, chunk, *rows, function=second_pass)
    if is_whole(table, backend):
        labels = query_labels, shard.labels
        with pinned(backend):
            return contrast_with_whole(*rows, k or 0, student_temp, teacher_temp, *labels, reduction, normalize)
    settings = Settings(
        shard._replace(labels=None if shard.labels is None else shard.labels.long()),
        [count for count, _ in table],
        chunk,
        k or 0,
        float(student_temp),
        float(teacher_temp),
        normalize,
        wants_grad(student),
        backend,
    )
    known = None if query_labels is None else query_labels.long()
    function: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Contrast.apply
    with pinned(backend):
        kl, similarity, index = function(student, shard.rows, teacher, known, settings)
    return reduce(kl, reduction, 2), similarity, index


class _Contrast(torch.autograd.Function):
    """One function for both results: collectives of a backward pass have one order then."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, rows: Tensor, teacher: Tensor, query_labels: Tensor | None, settings: Settings
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype, k = working_dtype(student, teacher, rows), settings.k
        kl = student.new_empty(len(student), dtype=dtype)
        statistics = student.new_empty((3, len(student)), dtype=torch.float64)
        similarity = student.new_empty((len(student), k), dtype=dtype)
        index = torch.empty_like(similarity, dtype=torch.int64)
        student_grad = torch.empty_like(student, dtype=dtype) if settings.student_grad else None
        labels = [] if query_labels is None else [query_labels]
        for trip in trips(settings.counts, settings.chunk, settings.shard.group):
            visiting = trip.out(student, teacher, *labels)
            found = _scan(*visiting, settings=settings)
            values, s_lse, t_lse, candidates, slots = trip.home(*found)
            merged = merge_statistics(values, s_lse, t_lse)
            kl[trip.own] = merged.kl
            # kl = sum_j p_t(j) (t_j - T - s_j + S)
            logit_gap = merged.kl + merged.teacher_lse - merged.student_lse
            statistics[:, trip.own] = torch.stack((merged.student_lse, merged.teacher_lse, logit_gap))
            similarity[trip.own], index[trip.own] = merge_candidates(candidates, slots, k)
            if student_grad is not None:
                partial = _contribution(visiting[0], visiting[1], trip, statistics[:2], settings)
                student_grad[trip.own] = summed(trip.home(partial)[0])
        ctx.mark_non_differentiable(index)
        ctx.settings = settings
        to_bank = ctx.needs_input_grad[1]
        again = (student, rows) if to_bank or k > 0 else (None, None)
        keep(ctx, *again, teacher if to_bank else None, index, student_grad, statistics if to_bank else None)
        ctx.dtypes = student.dtype, rows.dtype
        return kl, similarity, index

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_kl: Tensor | None, grad_similarity: Tensor | None, _index: None
    ) -> tuple[Tensor | None, ...]:
        student, rows, teacher, index, student_grad, statistics = ctx.saved_tensors
        settings: Settings = ctx.settings
        to_student, to_bank = ctx.needs_input_grad[:2]
        student_dtype, bank_dtype = ctx.dtypes
        of_student = of_bank = None
        if to_student and grad_kl is not None:
            of_student = grad_kl.unsqueeze(-1) * student_grad
        if to_bank:  # whatever results are in use here, the other processes may have used both
            dtype = working_dtype(student, teacher, rows)
            grad_kl = student.new_zeros(len(student), dtype=dtype) if grad_kl is None else grad_kl
            of_bank = _bank_gradient(grad_kl, student, teacher, rows, statistics, settings, ctx.backend)
            if grad_similarity is None and settings.k:
                grad_similarity = torch.zeros_like(index, dtype=dtype)
        if grad_similarity is not None and settings.k:
            query = selection_gradient(
                *(grad_similarity, student, rows, index, settings.shard, settings.counts, settings.chunk),
                *(settings.normalize, to_student, of_bank, ctx.backend),
            )
            of_student = query if of_student is None else of_student if query is None else of_student + query
        return (
            None if of_student is None else of_student.to(student_dtype),
            None if of_bank is None else of_bank.to(bank_dtype),
            *(None,) * 3,
        )


def _scan(
    student: Tensor, teacher: Tensor, query_labels: Tensor | None = None, *, settings: Settings
) -> tuple[Tensor, ...]:
    """What visiting queries find in this part: kl, both log-sum-exps, and the best with their slots."""
    shard, k = settings.shard, settings.k
    if not len(shard.rows):
        dtype = working_dtype(student, teacher, shard.rows)
        kl = student.new_zeros(len(student), dtype=dtype)
        lse = torch.full_like(kl, -torch.inf, dtype=torch.float64)
        similarity = torch.full((len(student), k), -torch.inf, dtype=dtype, device=student.device)
        return kl, lse, lse, similarity, torch.full_like(similarity, -1, dtype=torch.int64)
    labels = [] if query_labels is None else [query_labels]
    blocks = zip(*(x.split(settings.at_once()) for x in (student, teacher, *labels)), strict=True)
    found = [_scan_block(*block, settings=settings) for block in blocks]
    kl, student_lse, teacher_lse, similarity, places = (torch.cat(x) for x in zip(*found, strict=True))
    return kl, student_lse, teacher_lse, similarity, shard.slots(places)


def _scan_block(
    student: Tensor, teacher: Tensor, query_labels: Tensor | None = None, *, settings: Settings
) -> tuple[Tensor, ...]:
    """The same of queries that a kernel takes at once, with places for slots."""
    shard = settings.shard
    kl, statistics, _, similarity, places = call(
        "action_contrast",
        *(student[None], teacher[None], shard.rows[None], settings.k, settings.student_temp, settings.teacher_temp),
        None if query_labels is None else query_labels[None],
        None if shard.labels is None else shard.labels[None],
        *(settings.normalize, False, True),
    )
    return kl[0], *statistics[:2, 0], similarity[0], places[0]


def _contribution(student: Tensor, teacher: Tensor, trip: Trip, lses: Tensor, settings: Settings) -> Tensor:
    """What the rows of this part contribute to the visiting queries' gradients."""
    visiting = torch.stack(trip.out(*lses))[:, None]
    rows = settings.shard.rows
    if not len(rows):
        return torch.zeros_like(student, dtype=working_dtype(student, teacher, rows))
    after = settings.student_temp, settings.teacher_temp, settings.normalize, settings.backend
    at_once = settings.at_once()
    queries = student.split(at_once), teacher.split(at_once), visiting.split(at_once, dim=-1)
    parts = [
        call(_STUDENT_GRADIENT, s[None], t[None], rows[None], both, *after) for s, t, both in zip(*queries, strict=True)
    ]
    return torch.cat(parts, dim=1)[0]


def _bank_gradient(
    grad_kl: Tensor,
    student: Tensor,
    teacher: Tensor,
    rows: Tensor,
    statistics: Tensor,
    settings: Settings,
    backend: str,
) -> Tensor:
    """The gradient in the rows of this part of all processes' divergences."""
    total = torch.zeros_like(rows, dtype=working_dtype(student, teacher, rows))
    for trip in trips(settings.counts, settings.chunk, settings.shard.group):
        grad, s, t, *of_queries = trip.out(grad_kl, student, teacher, *statistics)
        if len(rows):
            visiting = *(x[None] for x in (grad, s, t, rows)), torch.stack(of_queries)[:, None]
            temps = settings.student_temp, settings.teacher_temp
            total += call("action_contrast_bank_gradient", *visiting, *temps, settings.normalize, backend)[0]
    return total
