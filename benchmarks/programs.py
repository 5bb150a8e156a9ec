"""The programs that compute an operator: ours, and what a user would write or install instead.

A program takes the inputs and returns its results, of which the first is the scalar to differentiate (for
``relation_negatives``, where nothing is, the drawn index).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import action_kernels
from action_kernels.backends import choosable

from .problems import Inputs, Problem

Program = Callable[[Inputs], tuple[Tensor, ...]]

STUDENT_TEMP, TEACHER_TEMP, TEMP = 0.1, 0.01, 0.5
CHUNK = 512  # queries
GPU_BACKENDS = choosable("cuda")


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


# ------------------------------------------------------------------------------------------------------------ eager


def eager_divergence(similarity: Tensor, teacher: Tensor, bank: Tensor) -> Tensor:
    student_log = (similarity / STUDENT_TEMP).log_softmax(dim=-1)
    teacher_log = (unit(teacher) @ bank.mT / TEACHER_TEMP).log_softmax(dim=-1)
    return F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(dim=-1).mean()


def eager_selection(similarity: Tensor, x: Inputs) -> tuple[Tensor, Tensor]:
    own = x.query_labels[..., :, None] == x.bank_labels[..., None, :]
    return similarity.masked_fill(own, -torch.inf).topk(x.k, dim=-1)


def eager_distillation(x: Inputs) -> tuple[Tensor, ...]:
    bank = unit(x.bank)
    return (eager_divergence(unit(x.student) @ bank.mT, x.teacher, bank),)


def eager_action_contrast(x: Inputs) -> tuple[Tensor, ...]:
    bank = unit(x.bank)
    similarity = unit(x.student) @ bank.mT
    return eager_divergence(similarity, x.teacher, bank), *eager_selection(similarity.detach(), x)


def eager_hard_negatives(x: Inputs) -> tuple[Tensor, ...]:
    similarity, index = eager_selection(unit(x.student) @ unit(x.bank).mT, x)
    return similarity.mean(), index


def eager_anatomical_contrast(x: Inputs) -> tuple[Tensor, ...]:
    """The negatives gathered as a tensor query x negative x feature."""
    query = unit(x.student)
    negative = torch.einsum("nd,nkd->nk", query, unit(x.bank)[x.index])
    positive = (query * unit(x.teacher)).sum(dim=1, keepdim=True)
    return (-(torch.cat([positive, negative], dim=1) / TEMP).log_softmax(dim=1)[:, 0].mean(),)


def eager_info_nce(x: Inputs) -> tuple[Tensor, ...]:
    return (F.cross_entropy(unit(x.student) @ unit(x.bank).mT / TEMP, x.query_labels),)


def eager_relation_negatives(x: Inputs) -> tuple[Tensor, ...]:
    classes = len(x.relation)
    members = F.one_hot(x.bank_labels, classes).T.to(x.relation.dtype)  # [C, M]
    relation = x.relation.masked_fill(torch.eye(classes, dtype=torch.bool, device=x.relation.device), 0.0)
    weight = (relation / members.sum(dim=1)) @ members
    return (torch.multinomial(weight[x.query_labels], x.k, replacement=True),)


# ------------------------------------------------------------------------------------------------------------ fused


def fused_distillation(x: Inputs) -> tuple[Tensor, ...]:
    loss = action_kernels.contrastive_distillation(
        x.student, x.teacher, x.bank, student_temp=STUDENT_TEMP, teacher_temp=TEACHER_TEMP
    )
    return (loss,)


def fused_action_contrast(x: Inputs) -> tuple[Tensor, ...]:
    result = action_kernels.action_contrast(
        *(x.student, x.teacher, x.bank, x.k),
        student_temp=STUDENT_TEMP,
        teacher_temp=TEACHER_TEMP,
        query_labels=x.query_labels,
        bank_labels=x.bank_labels,
    )
    return tuple(result)


def fused_hard_negatives(x: Inputs) -> tuple[Tensor, ...]:
    similarity, index = action_kernels.hard_negatives(
        x.student, x.bank, x.k, query_labels=x.query_labels, bank_labels=x.bank_labels
    )
    return similarity.mean(), index


def fused_anatomical_contrast(x: Inputs) -> tuple[Tensor, ...]:
    return (action_kernels.anatomical_contrast(x.student, x.teacher, x.bank, x.index, temp=TEMP),)


def fused_info_nce(x: Inputs) -> tuple[Tensor, ...]:
    return (action_kernels.info_nce(x.student, x.teacher, x.bank, temp=TEMP, positive_in_bank=True),)


def fused_relation_negatives(x: Inputs) -> tuple[Tensor, ...]:
    return (action_kernels.relation_negatives(x.query_labels, x.bank_labels, x.relation, x.k, seed=1),)


# ---------------------------------------------------------------------------------------------------------- chunked


def in_chunks(program: Program) -> Program:
    """The program on chunks of queries, each recomputed in the backward pass."""

    def run(x: Inputs) -> tuple[Tensor, ...]:
        count = x.student.shape[-2]

        def part(student: Tensor, teacher: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, ...]:
            chunk = replace(x, student=student, teacher=teacher, query_labels=labels, index=index)
            loss, *others = program(chunk)
            return loss * (student.shape[-2] / count), *others

        rows = (y.split(CHUNK, dim=-2) for y in (x.student, x.teacher, x.index))
        student, teacher, index = rows
        pieces = zip(student, teacher, x.query_labels.split(CHUNK, dim=-1), index, strict=True)
        losses, *others = zip(*(checkpoint(part, *piece, use_reentrant=False) for piece in pieces), strict=True)
        return sum(losses), *(torch.cat(y, dim=-2) for y in others)

    return run


def chunked_cross_entropy(x: Inputs) -> tuple[Tensor, ...]:
    """PyTorch's own (2.13 and later)."""
    options = torch.nn.LinearCrossEntropyOptions()
    return (F.linear_cross_entropy(unit(x.student) / TEMP, unit(x.bank), x.query_labels, options=options),)


# --------------------------------------------------------------------------------- other libraries (need a GPU)


def liger_cross_entropy() -> Program:
    loss = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
    return lambda x: (loss(unit(x.bank), unit(x.student) / TEMP, x.query_labels),)


def liger_divergence() -> Program:
    loss = importlib.import_module("liger_kernel.transformers").LigerFusedLinearJSD(
        jsd_beta=0.0
    )  # KL(teacher, student)

    def run(x: Inputs) -> tuple[Tensor, ...]:
        bank = unit(x.bank)
        return (loss(unit(x.student) / STUDENT_TEMP, bank, unit(x.teacher) / TEACHER_TEMP, bank, None),)

    return run


def cut_cross_entropy() -> Program:
    loss = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return lambda x: (loss(unit(x.student) / TEMP, unit(x.bank), x.query_labels),)


EAGER: dict[str, Program] = {
    "contrastive_distillation": eager_distillation,
    "action_contrast": eager_action_contrast,
    "hard_negatives": eager_hard_negatives,
    "anatomical_contrast": eager_anatomical_contrast,
    "info_nce": eager_info_nce,
    "relation_negatives": eager_relation_negatives,
}
FUSED: dict[str, Program] = {
    "contrastive_distillation": fused_distillation,
    "action_contrast": fused_action_contrast,
    "hard_negatives": fused_hard_negatives,
    "anatomical_contrast": fused_anatomical_contrast,
    "info_nce": fused_info_nce,
    "relation_negatives": fused_relation_negatives,
}
LIBRARIES: dict[str, dict[str, Callable[[], Program]]] = {
    "info_nce": {"liger": liger_cross_entropy, "cut_cross_entropy": cut_cross_entropy},
    "contrastive_distillation": {"liger": liger_divergence},
}


def on_backend(name: str, program: Program) -> Program:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        with action_kernels.use_backend(name):
            return program(x)

    return run


def programs(
    problem: Problem, device: str, memory: int, compiled: bool, alternatives: Sequence[str] = ()
) -> dict[str, Program]:
    """The programs to run, ours first, on the backend in force and on ``alternatives``; where there is a selection,
    also without it, which tells what it costs.

    Plain PyTorch only where it fits ``memory`` bytes, compiled if asked for; other libraries on a GPU, where they are
    installed.
    """
    operator = problem.operator
    eager = EAGER[operator]
    chosen = {"fused": FUSED[operator]}
    chosen |= {f"fused_{name}": on_backend(name, FUSED[operator]) for name in alternatives}
    if operator == "action_contrast":
        chosen["distillation"] = fused_distillation
    if problem.eager_bytes <= memory:
        chosen["eager"] = eager
        if compiled and operator != "relation_negatives":
            torch.compiler.reset()  # else a fourth size would make the third's graph dynamic, and then give up
            chosen["compiled"] = torch.compile(eager, dynamic=False)
    if operator != "relation_negatives" and problem.n > CHUNK:
        chosen["chunked"] = in_chunks(eager)
    if operator == "info_nce" and hasattr(F, "linear_cross_entropy"):
        chosen["linear_cross_entropy"] = chunked_cross_entropy
    if device == "cuda" and problem.groups == 1:
        for name, make in LIBRARIES.get(operator, {}).items():
            try:
                chosen[name] = make()
            except ImportError as error:
                print(f"without {name}: {error}")
    return chosen
