"""The native CPU backend: tensors in, down to ``csrc``, tensors out.

Every allocation names its dtype and device, and the native side checks each tensor's dtype, shape and layout before it
reads or writes: a tensor that does not fit is a ValueError which names it.

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

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_CPU = torch.device("cpu")
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
    kl = _empty((groups, queries))
    student_lse, teacher_lse = (_empty((groups, queries), torch.float64) for _ in range(2))
    gradient = _empty((groups, queries, features) if direction else (0,))
    similarity = _empty((groups, queries, k))
    index = _empty((groups, queries, k), torch.int64)
    query_labels, bank_labels = _labels(query_labels, bank_labels)
    _native.contrast(
        student,
        teacher,
        bank,
        k,
        query_labels,
        bank_labels,
        student_temp,
        teacher_temp,
        normalize,
        kl,
        student_lse,
        teacher_lse,
        gradient if direction else None,
        similarity,
        index,
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
    grad_bank = _empty(bank.shape)
    rows = [x.contiguous() for x in (grad_kl, kl, student_lse, teacher_lse)]
    _native.bank_gradient(
        student,
        teacher,
        bank,
        *rows,
        student_temp,
        teacher_temp,
        normalize,
        grad_bank,
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
    similarity = _empty((groups, queries, k))
    index = _empty((groups, queries, k), torch.int64)
    query_labels, bank_labels = _labels(query_labels, bank_labels)
    _native.contrast(
        query,
        None,
        bank,
        k,
        query_labels,
        bank_labels,
        1.0,
        1.0,
        normalize,
        *(None, None, None, None),
        similarity,
        index,
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
    grad_query = _empty(query.shape if query_gradient else (0,))
    grad_bank = _empty(bank.shape if bank_gradient else (0,))
    grad_similarity, index = grad_similarity.contiguous(), index.contiguous()
    _native.gather_gradient(
        query,
        None,
        bank,
        index,
        grad_similarity,
        None,
        None,
        1.0,
        normalize,
        grad_query if query_gradient else None,
        None,
        grad_bank if bank_gradient else None,
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
    index = _empty((groups, queries, k), torch.int64)
    tables = [x.contiguous() for x in (query_labels, thresholds, class_start, rows)]
    _native.relation_negatives(*tables, seed, index, _resources())
    return index


def anatomical_contrast(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    index: Tensor,
    temp: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    loss = _empty(query.shape[:2])
    lse = _empty(query.shape[:2], torch.float64)
    index = index.contiguous()
    _native.gather(
        query,
        positive,
        bank,
        index,
        temp,
        normalize,
        loss,
        lse,
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
    grad_query = _empty(query.shape if query_gradient else (0,))
    grad_positive = _empty(positive.shape if positive_gradient else (0,))
    grad_bank = _empty(bank.shape if bank_gradient else (0,))
    grad_loss, lse, index = grad_loss.contiguous(), lse.contiguous(), index.contiguous()
    _native.gather_gradient(
        query,
        positive,
        bank,
        index,
        None,
        grad_loss,
        lse,
        temp,
        normalize,
        grad_query if query_gradient else None,
        grad_positive if positive_gradient else None,
        grad_bank if bank_gradient else None,
        _resources(),
    )
    return grad_query, grad_positive, grad_bank


# ----------------------------------------------------------------------------------------- what the bindings take


def _empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    # Sizes one by one and a device that needs no parsing: PyTorch reads these in 1.5 us, not 2.5.
    return torch.empty(*shape, dtype=dtype, device=_CPU)


def _labels(query_labels: Tensor | None, bank_labels: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if query_labels is None or bank_labels is None:
        return None, None
    return query_labels.contiguous(), bank_labels.contiguous()


def _resources() -> tuple[int, int]:
    return torch.get_num_threads(), _scratch_limit
