"""The native CPU backend: tensors in, addresses and strides down to ``csrc/cpu``, tensors out.

Runs on ``torch.get_num_threads()`` threads and on one instruction set of :func:`variants`, the best that the processor
has. Working memory besides inputs and outputs stays within :func:`scratch_limit` (a few rows a thread at least) and one
float per bank row (two per query in the bank gradient).
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from .interface import ContrastResult

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_REASON_FILE = Path(__file__).parent.parent / "_cpu_build.txt"

_native: ModuleType | None = None
_reason: str | None = None
try:  # after torch, so that both share one OpenMP runtime
    from action_kernels import _cpu as _native
except ImportError as error:
    if _REASON_FILE.exists():
        _reason = f"the native module was not built: {_REASON_FILE.read_text().strip()}"
    else:
        _reason = f"the native module is not installed or does not load: {error}"
    _reason += " (needs a C++17 compiler at `pip install`)"

_scratch_limit = int(os.environ.get("ACTION_KERNELS_SCRATCH_MIB", "32")) << 20

_Matrix = tuple[int, int, int, int, int]
_NO_MATRIX: _Matrix = (0, 0, 0, 0, 0)


def unavailable() -> str | None:
    """Why this backend cannot run here, or None."""
    return _reason


def supports(device_type: str, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Why this backend does not take these tensors, or None."""
    if device_type != "cpu":
        return f"takes CPU tensors, not {device_type}"
    for dtype in dtypes:
        if dtype not in _DTYPES:
            return f"takes float32, float16 and bfloat16, not {dtype}"
    return None


def scratch_limit() -> int:
    """Bytes of scratch that one call may hold, all threads together."""
    return _scratch_limit


def set_scratch_limit(bytes: int) -> None:
    """Bound one call's scratch (default 32 MiB, or ``ACTION_KERNELS_SCRATCH_MIB``); smaller is slower, never wrong.

    Raises:
        ValueError: ``bytes`` is negative.
    """
    if bytes < 0:
        raise ValueError(f"bytes must not be negative, got {bytes}")
    global _scratch_limit
    _scratch_limit = bytes


def variants() -> list[str]:
    """Instruction sets that the native module has code for and this processor runs, best first."""
    return _native.variants() if _native else []


def variant() -> str | None:
    """The instruction set in use."""
    return _native.variant() if _native else None


def use_variant(name: str) -> None:
    """Run on another of :func:`variants`, in the whole process.

    Raises:
        ValueError: ``name`` is none of them.
    """
    _native.use_variant(name)


# ------------------------------------------------------------------------------------------------------- kernels


def action_contrast(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    k: int,
    student_temp: float,
    teacher_temp: float,
    query_labels: Tensor | None,
    bank_labels: Tensor | None,
    normalize: bool,
    direction: bool,
) -> ContrastResult:
    groups, queries, features = student.shape
    kl = torch.empty(groups, queries)
    student_lse, teacher_lse = (torch.empty(groups, queries, dtype=torch.float64) for _ in range(2))
    gradient = torch.empty((groups, queries, features) if direction else 0)
    similarity = torch.empty(groups, queries, k)
    index = torch.empty(groups, queries, k, dtype=torch.int64)
    query_labels, bank_labels = _labels(query_labels, bank_labels)
    _native.contrast(
        _shape(student, bank),
        _matrix(student),
        _matrix(teacher),
        _matrix(bank),
        k,
        _address(query_labels),
        _address(bank_labels),
        student_temp,
        teacher_temp,
        normalize,
        kl.data_ptr(),
        student_lse.data_ptr(),
        teacher_lse.data_ptr(),
        gradient.data_ptr(),
        similarity.data_ptr(),
        index.data_ptr(),
        _resources(),
    )
    return ContrastResult(kl, student_lse, teacher_lse, gradient, similarity, index)


def contrast_bank_gradient(
    grad_kl: Tensor,
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    kl: Tensor,
    student_lse: Tensor,
    teacher_lse: Tensor,
    student_temp: float,
    teacher_temp: float,
    normalize: bool,
) -> Tensor:
    grad_bank = torch.empty(bank.shape)
    rows = [x.contiguous() for x in (grad_kl, kl, student_lse, teacher_lse)]
    _native.bank_gradient(
        _shape(student, bank),
        _matrix(student),
        _matrix(teacher),
        _matrix(bank),
        *[x.data_ptr() for x in rows],
        student_temp,
        teacher_temp,
        normalize,
        grad_bank.data_ptr(),
        _resources(),
    )
    return grad_bank


def hard_negatives(
    query: Tensor,
    bank: Tensor,
    k: int,
    query_labels: Tensor | None,
    bank_labels: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    groups, queries, _ = query.shape
    similarity = torch.empty(groups, queries, k)
    index = torch.empty(groups, queries, k, dtype=torch.int64)
    query_labels, bank_labels = _labels(query_labels, bank_labels)
    _native.contrast(
        _shape(query, bank),
        _matrix(query),
        _NO_MATRIX,
        _matrix(bank),
        k,
        _address(query_labels),
        _address(bank_labels),
        1.0,
        1.0,
        normalize,
        *(0, 0, 0, 0),
        similarity.data_ptr(),
        index.data_ptr(),
        _resources(),
    )
    return similarity, index


def selection_gradient(
    grad_similarity: Tensor,
    query: Tensor,
    bank: Tensor,
    index: Tensor,
    normalize: bool,
    query_gradient: bool,
    bank_gradient: bool,
) -> tuple[Tensor, Tensor]:
    grad_query = torch.empty(query.shape if query_gradient else 0)
    grad_bank = torch.empty(bank.shape if bank_gradient else 0)
    grad_similarity, index = grad_similarity.contiguous(), index.contiguous()
    _native.gather_gradient(
        _shape(query, bank),
        _matrix(query),
        _NO_MATRIX,
        _matrix(bank),
        index.data_ptr(),
        index.shape[2],
        grad_similarity.data_ptr(),
        0,
        0,
        1.0,
        normalize,
        grad_query.data_ptr(),
        0,
        grad_bank.data_ptr(),
        _resources(),
    )
    return grad_query, grad_bank


def relation_negatives(
    query_labels: Tensor,
    thresholds: Tensor,
    class_start: Tensor,
    rows: Tensor,
    k: int,
    seed: int,
) -> Tensor:
    groups, queries = query_labels.shape
    index = torch.empty(groups, queries, k, dtype=torch.int64)
    tables = [x.contiguous() for x in (query_labels, thresholds, class_start, rows)]
    _native.relation_negatives(
        groups,
        queries,
        rows.shape[1],
        thresholds.shape[1],
        k,
        *[x.data_ptr() for x in tables],
        seed,
        index.data_ptr(),
        _resources(),
    )
    return index


def anatomical_contrast(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    index: Tensor,
    temp: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    loss = torch.empty(query.shape[:2])
    lse = torch.empty(query.shape[:2], dtype=torch.float64)
    index = index.contiguous()
    _native.gather(
        _shape(query, bank),
        _matrix(query),
        _matrix(positive),
        _matrix(bank),
        index.data_ptr(),
        index.shape[2],
        temp,
        normalize,
        loss.data_ptr(),
        lse.data_ptr(),
        _resources(),
    )
    return loss, lse


def anatomical_contrast_gradient(
    grad_loss: Tensor,
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    index: Tensor,
    lse: Tensor,
    temp: float,
    normalize: bool,
    query_gradient: bool,
    positive_gradient: bool,
    bank_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_query = torch.empty(query.shape if query_gradient else 0)
    grad_positive = torch.empty(positive.shape if positive_gradient else 0)
    grad_bank = torch.empty(bank.shape if bank_gradient else 0)
    grad_loss, lse, index = grad_loss.contiguous(), lse.contiguous(), index.contiguous()
    _native.gather_gradient(
        _shape(query, bank),
        _matrix(query),
        _matrix(positive),
        _matrix(bank),
        index.data_ptr(),
        index.shape[2],
        0,
        grad_loss.data_ptr(),
        lse.data_ptr(),
        temp,
        normalize,
        grad_query.data_ptr(),
        grad_positive.data_ptr(),
        grad_bank.data_ptr(),
        _resources(),
    )
    return grad_query, grad_positive, grad_bank


# ----------------------------------------------------------------------------------------- what the bindings take


def _shape(query: Tensor, bank: Tensor) -> tuple[int, int, int, int]:
    groups, queries, features = query.shape
    return groups, queries, bank.shape[1], features


def _matrix(x: Tensor) -> _Matrix:
    return (x.data_ptr(), _DTYPES[x.dtype], *x.stride())


def _labels(query_labels: Tensor | None, bank_labels: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if query_labels is None or bank_labels is None:
        return None, None
    return query_labels.contiguous(), bank_labels.contiguous()


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _resources() -> tuple[int, int]:
    return torch.get_num_threads(), _scratch_limit
