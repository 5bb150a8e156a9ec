"""What the operators check before anything runs. A ``ValueError`` names the argument, its value and the remedy."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from ..dtypes import FLOATING, INTEGER

REDUCTIONS = ("none", "mean", "sum")


def shape_text(query: Tensor, last: str) -> str:
    return f"[N, {last}]" if query.dim() == 2 else f"[G, N, {last}]"


def check_k(k: int) -> None:
    check_whole("k", k)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def check_whole(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt, numbers.Integral)):
        raise ValueError(f"{name} must be an integer, got {value!r}")


def check_normalize(normalize: bool) -> None:
    if not isinstance(normalize, int):
        raise ValueError(f"normalize must be True or False, got {normalize!r}")


def check_tensor(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, got {type(x).__name__}: convert it with torch.as_tensor")
    if type(x) is not Tensor and hasattr(x, "full_tensor"):  # a DTensor; its class is slow to import
        raise ValueError(
            f"{name} must be an ordinary tensor, got a {type(x).__name__} of shape {tuple(x.shape)}: pass "
            f"{name}.full_tensor(), or {name}.to_local() to an operator of action_kernels.distributed if its rows are "
            "divided among the processes"
        )


def check_reduction(reduction: str) -> None:
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def check_rows(**rows: Tensor) -> None:
    """Rows of features: two or three dimensions, all alike, floating, one device."""
    (first_name, first), *_ = rows.items()
    for name, x in rows.items():
        check_tensor(name, x)
        if x.dim() not in (2, 3) or x.shape[-1] == 0:
            raise ValueError(f"{name} must be [rows, D] or [G, rows, D] with D >= 1, got shape {tuple(x.shape)}")
        if x.dtype not in FLOATING:
            raise ValueError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")
        if x.dim() != first.dim():
            raise ValueError(
                f"{name} and {first_name} must both have the group dimension or both lack it, "
                f"got shapes {tuple(x.shape)} and {tuple(first.shape)}"
            )
    check_device(**rows)


def check_device(**tensors: Tensor | None) -> None:
    (first_name, first), *others = ((name, x) for name, x in tensors.items() if x is not None)
    for name, x in others:
        if x.device != first.device:
            raise ValueError(
                f"{name} and {first_name} must be on one device, got {name} on {x.device} "
                f"and {first_name} on {first.device}: move one with .to()"
            )


def check_features(query_name: str, query: Tensor, bank_name: str, bank: Tensor) -> None:
    if query.shape[-1] != bank.shape[-1] or query.shape[:-2] != bank.shape[:-2]:
        raise ValueError(
            f"{query_name} and {bank_name} must agree in features and groups, "
            f"got shapes {tuple(query.shape)} and {tuple(bank.shape)}"
        )


def check_integer(name: str, x: Tensor) -> None:
    check_tensor(name, x)
    if x.dtype not in INTEGER:
        raise ValueError(f"{name} must hold integers, got {x.dtype}: convert it with .long()")


def check_labels(
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
        check_integer(name, labels)
        if labels.shape != rows.shape[:-1]:
            raise ValueError(
                f"{name} must hold one label per row of {row_name}, "
                f"got shapes {tuple(labels.shape)} and {tuple(rows.shape)}"
            )
    check_device(query=query, query_labels=query_labels, bank_labels=bank_labels)
    return query_labels, bank_labels
