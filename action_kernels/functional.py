"""The public operators: they check their arguments, say what is wrong, and call the registered op.

Shapes: N queries, M bank rows, D features, C classes. Every function takes ungrouped inputs ([N, D], [M, D], labels
[N]) or, with a leading dimension G, one bank per group ([G, N, D], [G, M, D], labels [G, N]). Floating inputs are
float16, bfloat16, float32 or float64 and may differ in dtype; results are float32, or float64 if any input is.
Gradients come in the dtype of their input. Autocast changes nothing: the operators run in the dtypes given and
accumulate in float32. Double backward and forward-mode differentiation raise; ``torch.func.grad``, ``vjp``, ``jacrev``
and ``vmap`` work (``vmap`` as more groups: a leading dimension G says the same). Values on a GPU are never inspected,
so nothing synchronises with it.

A student's temperature may be learnt: a tensor of one element, on the CPU or the rows' device (``nn.Parameter``,
``log_temp.exp()``), gets its exact gradient. The rows are then brought to unit length in front of the kernels, in
float32 copies [N, D] and [M, D] (none of the bank with ``normalize=False``); a Python number costs no copy. The same
holds in a compiled function whose temperature is a number that changes from call to call, so that a schedule compiles
twice and not at every step. A tensor's value that is not positive gives NaN where it cannot be read at once.

Source of the losses: You et al., "Bootstrapping Semi-supervised Medical Image Segmentation with Anatomical-Aware
Contrastive Distillation", IPMI 2023, arXiv 2206.02307.
"""

from __future__ import annotations

import numbers
from typing import NamedTuple

import torch
from torch import Tensor

from . import temperature
from .ops import call
from .temperature import Temperature

__all__ = [
    "ActionContrastResult",
    "action_contrast",
    "anatomical_contrast",
    "contrastive_distillation",
    "hard_negatives",
    "relation_negatives",
]

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_REDUCTIONS = ("none", "mean", "sum")


class ActionContrastResult(NamedTuple):
    """What :func:`action_contrast` returns."""

    distillation: Tensor  # KL divergence, reduced
    similarity: Tensor  # [(G,) N, k] student similarities of the hard negatives, descending; -inf where none is left
    index: Tensor  # [(G,) N, k] int64 bank rows of the hard negatives; -1 where none is left


def contrastive_distillation(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    *,
    student_temp: Temperature = 0.1,
    teacher_temp: Temperature = 0.01,
    reduction: str = "mean",
    normalize: bool = True,
) -> Tensor:
    """Divergence between the teacher's and the student's similarity distribution over a bank.

    ``KL_i = sum_j p_t(j) (log p_t(j) - log p_s(j))`` with ``p_t = softmax_j(<teacher_i, bank_j> / teacher_temp)`` and
    ``p_s = softmax_j(<student_i, bank_j> / student_temp)``: the paper's global and local contrastive distillation.

    Args:
        student: [(G,) N, D], differentiable.
        teacher: [(G,) N, D], must not require grad.
        bank: [(G,) M, D], differentiable through both distributions (the rows of a ``MemoryBank`` are detached).
        student_temp: temperature of the student's softmax, > 0; differentiable where it is a tensor of one element.
        teacher_temp: temperature of the teacher's softmax, > 0; as a tensor it must not require grad.
        reduction: ``"none"`` gives [(G,) N]; ``"mean"`` and ``"sum"`` run over all rows of all groups.
        normalize: scale every row to unit length first, so that similarities are cosines.

    Returns:
        The loss; zero, with a graph, where there are no queries or no bank rows.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, a temperature is not positive, the teacher or its temperature
            requires grad.
    """
    kl, _, _ = _contrast(student, teacher, bank, 0, student_temp, teacher_temp, None, None, reduction, normalize)
    return kl


def action_contrast(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    k: int,
    *,
    student_temp: Temperature = 0.1,
    teacher_temp: Temperature = 0.01,
    query_labels: Tensor | None = None,
    bank_labels: Tensor | None = None,
    reduction: str = "mean",
    normalize: bool = True,
) -> ActionContrastResult:
    """:func:`contrastive_distillation` and :func:`hard_negatives` of the student, from one pass over the similarities.

    Arguments, results and errors are those of the two functions; ``reduction`` applies to the divergence.
    """
    _check_k(k)
    return ActionContrastResult(
        *_contrast(
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
        )
    )


def hard_negatives(
    query: Tensor,
    bank: Tensor,
    k: int,
    *,
    query_labels: Tensor | None = None,
    bank_labels: Tensor | None = None,
    normalize: bool = True,
) -> tuple[Tensor, Tensor]:
    """The ``k`` bank rows most similar to each query, among those of another class.

    Args:
        query: [(G,) N, D], differentiable.
        bank: [(G,) M, D], differentiable.
        k: rows per query, >= 1; may exceed M.
        query_labels: [(G,) N] integers. Without labels every bank row may be selected.
        bank_labels: [(G,) M] integers; given together with ``query_labels``. Rows of the query's own class and rows
            with a negative label are not selected.
        normalize: scale every row to unit length first, so that similarities are cosines.

    Returns:
        ``(similarity, index)``, both [(G,) N, k], in descending order, ties to the lower index. Where fewer than ``k``
        rows qualify, and for similarities that are NaN, the similarity is -inf and the index -1.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, ``k`` < 1, one of the labels is missing.
    """
    _check_k(k)
    _check_normalize(normalize)
    _check_rows(query=query, bank=bank)
    _check_features("query", query, "bank", bank)
    query_labels, bank_labels = _check_labels("query", query, query_labels, bank, bank_labels)
    if not (query.shape[-2] and _banked(bank)):
        similarity = _zero(query, bank).unsqueeze(-1).expand(*query.shape[:-1], k) - torch.inf
        return similarity, _nothing(query, k)
    args = _grouped(query, bank), k, _grouped_labels(query_labels), _grouped_labels(bank_labels), normalize
    similarity, index = call("hard_negatives", *args[0], *args[1:])
    return _ungrouped(similarity, query.dim()), _ungrouped(index, query.dim())


def relation_negatives(
    query_labels: Tensor, bank_labels: Tensor, class_relation: Tensor, k: int, *, seed: int
) -> Tensor:
    """``k`` negatives per query, drawn with replacement: a class by the relation of classes, then a row of that class.

    A query of class c draws class v with probability proportional to ``class_relation[c, v]``; c itself and classes
    without bank rows are never drawn. Every row of the class is then equally likely. The draws are a function of the
    seed, the group, the query's position and the labels alone: Philox4x32-10 words against integer thresholds, so that
    every backend returns the same indices. Weights count in steps of 2**-24 of the largest of their row (coarser
    beyond 127 classes); smaller ones are never drawn.

    Args:
        query_labels: [(G,) N] integers; a label outside 0..C-1 draws nothing.
        bank_labels: [(G,) M] integers; rows with a label outside 0..C-1 are never drawn.
        class_relation: [C, C] or [G, C, C] non-negative weights, row = class of the query. Diagonal ignored.
        k: draws per query, >= 1.
        seed: 0 <= seed < 2**63; pass another one each step.

    Returns:
        [(G,) N, k] int64 bank rows, -1 where no class can be drawn.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, ``k`` or ``seed`` out of range.
    """
    _check_k(k)
    _check_whole("seed", seed)
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie in 0 <= seed < 2**63, got {seed}")
    _check_relation(query_labels, bank_labels, class_relation)
    if not (query_labels.numel() and bank_labels.numel() and class_relation.shape[-1]):
        return torch.full((*query_labels.shape, k), -1, dtype=torch.int64, device=query_labels.device)
    query, bank = _grouped_labels(query_labels), _grouped_labels(bank_labels)
    classes = class_relation.shape[-1]

    # Bank rows sorted by class; rows without a class behind all others.
    key = torch.where((bank >= 0) & (bank < classes), bank, classes)
    key, rows = key.sort(dim=-1, stable=True)
    borders = torch.arange(classes + 1, dtype=torch.int64, device=bank.device).expand(bank.shape[0], -1).contiguous()
    class_start = torch.searchsorted(key, borders)

    thresholds = _thresholds(class_relation, class_start)
    query = torch.where(query < classes, query, -1).clamp_min(-1)
    index = call("relation_negatives", query, thresholds, class_start, rows, k, seed)
    return _ungrouped(index, query_labels.dim() + 1)


def _thresholds(class_relation: Tensor, class_start: Tensor) -> Tensor:
    """Cumulative integer weights [G, C, C], each row summing to less than 2**31."""
    classes = class_relation.shape[-1]
    steps = 2.0 ** min(24, 30 - (classes - 1).bit_length())
    barred = torch.eye(classes, dtype=torch.bool, device=class_relation.device)
    barred = barred | (class_start.diff(dim=-1) == 0).unsqueeze(-2)
    # float64 division and floor are exact on every device, and so are the integers from here on.
    weight = class_relation.double().nan_to_num(0.0).clamp_min(0.0).masked_fill(barred, 0.0)
    largest = weight.amax(-1, keepdim=True)
    share = torch.where(largest > 0, weight / largest, 0.0)
    return (share * steps).floor().long().cumsum(-1)


def anatomical_contrast(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    index: Tensor,
    *,
    temp: Temperature = 0.5,
    reduction: str = "mean",
    normalize: bool = True,
) -> Tensor:
    """InfoNCE of every query against its positive and the bank rows named by ``index``, read in place.

    ``loss_i = -log( e^{<q_i, p_i> / temp} / (e^{<q_i, p_i> / temp} + sum_j e^{<q_i, bank_index(i,j)> / temp}) )``: the
    paper's anatomical contrast. A row named twice counts twice.

    Args:
        query: [(G,) N, D], differentiable.
        positive: [(G,) N, D], differentiable; an expanded class mean is fine.
        bank: [(G,) M, D], differentiable (the rows of a ``MemoryBank`` are detached).
        index: [(G,) N, k] integers; entries outside 0..M-1, in particular -1, are skipped.
        temp: temperature, > 0; differentiable where it is a tensor of one element.
        reduction: ``"none"`` gives [(G,) N]; ``"mean"`` and ``"sum"`` run over all rows of all groups.
        normalize: scale every row to unit length first, so that similarities are cosines.

    Returns:
        The loss; zero, with a graph, for a query without negatives and where there are no queries.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, the temperature is not positive.
    """
    _check_reduction(reduction)
    _check_normalize(normalize)
    _check_rows(query=query, positive=positive, bank=bank)
    temp = temperature.checked("temp", temp, query)
    if positive.shape != query.shape:
        raise ValueError(f"positive must have the shape of query, got {tuple(positive.shape)} and {tuple(query.shape)}")
    _check_features("query", query, "bank", bank)
    _check_integer("index", index)
    if index.dim() != query.dim() or index.shape[:-1] != query.shape[:-1]:
        raise ValueError(
            f"index must be {_shape(query, 'k')} for a query of shape {tuple(query.shape)}, got {tuple(index.shape)}"
        )
    _check_device(query=query, index=index)
    if not (query.shape[-2] and _banked(bank) and index.shape[-1]):
        return _reduce(_zero(query, positive, bank, temp=temp), reduction, query.dim())
    if temperature.varies(temp):
        dtype = _working(query, positive, bank)
        query, positive, bank = (temperature.unit(x, normalize, dtype) for x in (query, positive, bank))
        query, temp, _ = temperature.absorbed(query, temp, dtype)
        normalize = False
    rows = _grouped(query, positive, bank)
    loss, _ = call("anatomical_contrast", *rows, _grouped(index.long())[0], temp, normalize)
    return _reduce(loss, reduction, query.dim())


def _contrast(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    k: int,
    student_temp: Temperature,
    teacher_temp: Temperature,
    query_labels: Tensor | None,
    bank_labels: Tensor | None,
    reduction: str,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_reduction(reduction)
    _check_normalize(normalize)
    _check_rows(student=student, teacher=teacher, bank=bank)
    student_temp = temperature.checked("student_temp", student_temp, student)
    teacher_temp = temperature.checked("teacher_temp", teacher_temp, student, learnable=False)
    if teacher.shape != student.shape:
        raise ValueError(
            f"teacher must have the shape of student, got {tuple(teacher.shape)} and {tuple(student.shape)}"
        )
    if teacher.requires_grad:
        raise ValueError(f"teacher must not require grad (shape {tuple(teacher.shape)}): pass teacher.detach()")
    _check_features("student", student, "bank", bank)
    query_labels, bank_labels = _check_labels("student", student, query_labels, bank, bank_labels)
    if not (student.shape[-2] and _banked(bank)):
        zero = _zero(student, bank, temp=student_temp)
        similarity = zero.unsqueeze(-1).expand(*student.shape[:-1], k) - torch.inf
        return _reduce(zero, reduction, student.dim()), similarity, _nothing(student, k)
    divisor: Temperature = 1.0
    if temperature.varies(student_temp) or temperature.varies(teacher_temp):
        dtype = _working(student, teacher, bank)
        student, teacher, bank = (temperature.unit(x, normalize, dtype) for x in (student, teacher, bank))
        student, student_temp, divisor = temperature.absorbed(student, student_temp, dtype)
        teacher, teacher_temp, _ = temperature.absorbed(teacher, teacher_temp, dtype)
        normalize = False
    kl, _, _, _, similarity, index = call(
        "action_contrast",
        *_grouped(student, teacher, bank),
        k,
        student_temp,
        teacher_temp,
        _grouped_labels(query_labels),
        _grouped_labels(bank_labels),
        normalize,
        torch.is_grad_enabled() and student.requires_grad,
    )
    if k and temperature.varies(
        divisor
    ):  # back to similarities of the rows; -inf times a gradient of zero would be NaN
        found = index >= 0
        similarity = torch.where(found, torch.where(found, similarity, 0.0) * divisor, -torch.inf)
    dim = student.dim()
    return _reduce(kl, reduction, dim), _ungrouped(similarity, dim), _ungrouped(index, dim)


# --------------------------------------------------------------------------------------------- groups, empty, sums


def _grouped(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x if x.dim() == 3 else x.unsqueeze(0) for x in tensors)


def _grouped_labels(labels: Tensor | None) -> Tensor | None:
    if labels is None:
        return None
    labels = labels.long()
    return labels if labels.dim() == 2 else labels.unsqueeze(0)


def _ungrouped(x: Tensor, dim: int) -> Tensor:
    """Without the group dimension again if the inputs ``[(G,) N, D]`` came without (``dim`` = 2)."""
    return x.squeeze(0) if dim == 2 else x


def _banked(bank: Tensor) -> bool:
    return bank.numel() > 0


def _working(*tensors: Tensor) -> torch.dtype:
    """dtype of losses and similarities."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def _zero(query: Tensor, *others: Tensor, temp: Temperature = 1.0) -> Tensor:
    """A zero for every query that hangs on the graph of all inputs, whatever their values."""
    dtype = _working(query, *others)
    zero = query[..., :0].sum(-1, dtype=dtype)
    for x in others:
        zero = zero + x[..., :0].sum(dtype=dtype)
    return zero + temp.reshape(1)[:0].sum(dtype=dtype) if isinstance(temp, Tensor) else zero


def _nothing(query: Tensor, k: int) -> Tensor:
    return torch.full((*query.shape[:-1], k), -1, dtype=torch.int64, device=query.device)


def _reduce(rows: Tensor, reduction: str, dim: int) -> Tensor:
    if reduction == "none":
        return rows.squeeze(0) if dim == 2 and rows.dim() == 2 else rows
    if reduction == "mean" and rows.numel() > 0:
        return rows.mean()
    return rows.sum()


# --------------------------------------------------------------------------------------------------------- checks


def _shape(query: Tensor, last: str) -> str:
    return f"[N, {last}]" if query.dim() == 2 else f"[G, N, {last}]"


def _check_k(k: int) -> None:
    _check_whole("k", k)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def _check_whole(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt, numbers.Integral)):
        raise ValueError(f"{name} must be an integer, got {value!r}")


def _check_normalize(normalize: bool) -> None:
    if not isinstance(normalize, int):
        raise ValueError(f"normalize must be True or False, got {normalize!r}")


def _check_tensor(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, got {type(x).__name__}: convert it with torch.as_tensor")


def _check_reduction(reduction: str) -> None:
    if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")


def _check_rows(**rows: Tensor) -> None:
    """Rows of features: two or three dimensions, all alike, floating, one device."""
    (first_name, first), *_ = rows.items()
    for name, x in rows.items():
        _check_tensor(name, x)
        if x.dim() not in (2, 3) or x.shape[-1] == 0:
            raise ValueError(f"{name} must be [rows, D] or [G, rows, D] with D >= 1, got shape {tuple(x.shape)}")
        if x.dtype not in _FLOATING:
            raise ValueError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")
        if x.dim() != first.dim():
            raise ValueError(
                f"{name} and {first_name} must both have the group dimension or both lack it, "
                f"got shapes {tuple(x.shape)} and {tuple(first.shape)}"
            )
    _check_device(**rows)


def _check_device(**tensors: Tensor | None) -> None:
    (first_name, first), *others = ((name, x) for name, x in tensors.items() if x is not None)
    for name, x in others:
        if x.device != first.device:
            raise ValueError(
                f"{name} and {first_name} must be on one device, got {name} on {x.device} "
                f"and {first_name} on {first.device}: move one with .to()"
            )


def _check_features(query_name: str, query: Tensor, bank_name: str, bank: Tensor) -> None:
    if query.shape[-1] != bank.shape[-1] or query.shape[:-2] != bank.shape[:-2]:
        raise ValueError(
            f"{query_name} and {bank_name} must agree in features and groups, "
            f"got shapes {tuple(query.shape)} and {tuple(bank.shape)}"
        )


def _check_integer(name: str, x: Tensor) -> None:
    _check_tensor(name, x)
    if x.dtype not in _INTEGER:
        raise ValueError(f"{name} must hold integers, got {x.dtype}: convert it with .long()")


def _check_labels(
    query_name: str, query: Tensor, query_labels: Tensor | None, bank: Tensor, bank_labels: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    if query_labels is None and bank_labels is None:
        return None, None
    if query_labels is None or bank_labels is None:
        given, missing = ("bank_labels", "query_labels") if query_labels is None else ("query_labels", "bank_labels")
        raise ValueError(f"query_labels and bank_labels go together, got {given} but {missing}=None")
    for name, labels, row_name, rows in (
        ("query_labels", query_labels, query_name, query),
        ("bank_labels", bank_labels, "bank", bank),
    ):
        _check_integer(name, labels)
        if labels.shape != rows.shape[:-1]:
            raise ValueError(
                f"{name} must hold one label per row of {row_name}, "
                f"got shapes {tuple(labels.shape)} and {tuple(rows.shape)}"
            )
    _check_device(query=query, query_labels=query_labels, bank_labels=bank_labels)
    return query_labels, bank_labels


def _check_relation(query_labels: Tensor, bank_labels: Tensor, class_relation: Tensor) -> None:
    _check_integer("query_labels", query_labels)
    _check_integer("bank_labels", bank_labels)
    _check_tensor("class_relation", class_relation)
    _check_device(query_labels=query_labels, bank_labels=bank_labels, class_relation=class_relation)
    if (
        query_labels.dim() not in (1, 2)
        or bank_labels.dim() != query_labels.dim()
        or bank_labels.shape[:-1] != query_labels.shape[:-1]
    ):
        raise ValueError(
            "query_labels and bank_labels must be [N] and [M], or [G, N] and [G, M], "
            f"got shapes {tuple(query_labels.shape)} and {tuple(bank_labels.shape)}"
        )
    if class_relation.dtype not in _FLOATING and class_relation.dtype not in _INTEGER:
        raise ValueError(f"class_relation must hold real weights, got {class_relation.dtype}")
    shape = class_relation.shape
    if class_relation.dim() not in (2, 3) or shape[-1] != shape[-2] or shape[:-2] not in ((), query_labels.shape[:-1]):
        raise ValueError(
            "class_relation must be [C, C], or [G, C, C] with the groups of query_labels, "
            f"got shapes {tuple(shape)} and {tuple(query_labels.shape)}"
        )
