"""Negatives drawn by the relation of classes, the same on every backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dtypes import FLOATING, INTEGER
from . import arguments
from .registration import call, register
from .shapes import grouped_labels, ungrouped


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
    arguments.check_k(k)
    arguments.check_whole("seed", seed)
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie in 0 <= seed < 2**63, got {seed}")
    _check_relation(query_labels, bank_labels, class_relation)
    if not (query_labels.numel() and bank_labels.numel() and class_relation.shape[-1]):
        return torch.full((*query_labels.shape, k), -1, dtype=torch.int64, device=query_labels.device)
    query, bank = grouped_labels(query_labels), grouped_labels(bank_labels)
    assert query is not None and bank is not None
    classes = class_relation.shape[-1]

    # Bank rows sorted by class; rows without a class come last.
    key = torch.where((bank >= 0) & (bank < classes), bank, classes)
    key, rows = key.sort(dim=-1, stable=True)
    borders = torch.arange(classes + 1, dtype=torch.int64, device=bank.device).expand(bank.shape[0], -1).contiguous()
    class_start = torch.searchsorted(key, borders)

    thresholds = _thresholds(class_relation, class_start)
    query = torch.where(query < classes, query, -1).clamp_min(-1)
    index = call("relation_negatives", query, thresholds, class_start, rows, k, seed)
    return ungrouped(index, query_labels.dim() + 1)


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


def _check_relation(query_labels: Tensor, bank_labels: Tensor, class_relation: Tensor) -> None:
    arguments.check_integer("query_labels", query_labels)
    arguments.check_integer("bank_labels", bank_labels)
    arguments.check_tensor("class_relation", class_relation)
    arguments.check_device(query_labels=query_labels, bank_labels=bank_labels, class_relation=class_relation)
    if (
        query_labels.dim() not in (1, 2)
        or bank_labels.dim() != query_labels.dim()
        or bank_labels.shape[:-1] != query_labels.shape[:-1]
    ):
        raise ValueError(
            "query_labels and bank_labels must be [N] and [M], or [G, N] and [G, M], "
            f"got shapes {tuple(query_labels.shape)} and {tuple(bank_labels.shape)}"
        )
    if class_relation.dtype not in FLOATING and class_relation.dtype not in INTEGER:
        raise ValueError(f"class_relation must hold real weights, got {class_relation.dtype}")
    shape = class_relation.shape
    if class_relation.dim() not in (2, 3) or shape[-1] != shape[-2] or shape[:-2] not in ((), query_labels.shape[:-1]):
        raise ValueError(
            "class_relation must be [C, C], or [G, C, C] with the groups of query_labels, "
            f"got shapes {tuple(shape)} and {tuple(query_labels.shape)}"
        )


# ---------------------------------------------------------------------------------------------- as PyTorch sees it


def _fake(query_labels: Tensor, thresholds: Tensor, class_start: Tensor, rows: Tensor, k: int, seed: int) -> Tensor:
    return query_labels.new_empty((*query_labels.shape, k), dtype=torch.int64)


register(
    "relation_negatives",
    "(Tensor query_labels, Tensor thresholds, Tensor class_start, Tensor rows, SymInt k, SymInt seed) -> Tensor",
    rows=(),
    fake=_fake,
)
