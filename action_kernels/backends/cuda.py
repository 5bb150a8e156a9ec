"""The CUDA C++ backend: tensors in, addresses and strides down to ``csrc/cuda``, tensors out.

Works like the Triton backend: a pass over the bank that keeps similarities in registers (``scan``), one more pass for
either gradient (``contrast_gradient``), gathers for what an index names. Float32 products follow PyTorch's setting for
CUDA matrix products: exact, or on tensor cores in tf32. Kernels run on the tensors' device and its current stream;
nothing synchronises with the host; the same input gives the same bits.

Working memory: a padded copy of student, teacher and bank in their own dtype, a few floats per query, and for the
selection a buffer per running block (up to 256 MiB altogether, more only where a single block needs it).

``ACTION_CUDA_HOST`` names a library with the same kernels compiled for the CPU, for tests: CPU tensors then.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .interface import ContrastResult

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_PACKAGE = Path(__file__).parent.parent
_LIBRARY = _PACKAGE / "_cuda_kernels.so"
_REASON_FILE = _PACKAGE / "_cuda_build.txt"
_HOST = os.environ.get("ACTION_CUDA_HOST")

_LOG2E = math.log2(math.e)
_TILE = 64  # rows of a tile, on either side
_PART = 32  # bytes to which rows are padded
_EMPTY = -(2**63)  # key of no candidate
_SORTED = 4096  # candidates that one block puts into order
_BUFFER_BYTES = 256 << 20

# Arguments of the launchers in csrc/cuda, without the stream: l int64, u uint64, i int, f float, d double; addresses of
# contiguous tensors F float32, D float64, I int64, W int32; p address of a tensor whose dtype goes beside it.
_LAUNCHERS = {
    "prepare": "pilll piFF lliil ii",
    "finish": "FiFf pilll F lliii",
    "scan": "pF pF pF iil lllll ll ff II iiii IWFI l",
    "merge": "Fll dd FDD",
    "terms": "FF DD FFF FF lll dd",
    "contrast_gradient": "i ppp FF iil lllll ll ff fff F",
    "order": "Ili l FI",
    "gather": "FFF FFF pilll IFF DFFFF lll iii di",
    "scatter": "FF pilll IIF F llll iii",
    "relation_negatives": "IIII I lllll u",
}
_TYPES = {
    "l": ctypes.c_int64,
    "u": ctypes.c_uint64,
    "i": ctypes.c_int,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}
_TENSORS = {"p": None, "F": torch.float32, "D": torch.float64, "I": torch.int64, "W": torch.int32}
_ARGUMENTS = {name: arguments.replace(" ", "") for name, arguments in _LAUNCHERS.items()}

_one_at_a_time = threading.RLock()  # kernels compiled for the CPU share their threads


# ------------------------------------------------------------------------------------------------- the library


@cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    path = Path(_HOST) if _HOST else _LIBRARY
    if not path.exists():
        reason = f"{path} does not exist"
        if not _HOST and _REASON_FILE.exists():
            reason = _REASON_FILE.read_text().strip()
        return f"the kernels were not built: {reason}"
    try:
        library = ctypes.CDLL(str(path))
        for name, arguments in _ARGUMENTS.items():
            launcher = getattr(library, f"action_{name}")
            launcher.argtypes = [*(_TYPES.get(x, ctypes.c_void_p) for x in arguments), ctypes.c_void_p]
            launcher.restype = ctypes.c_int
        library.action_error_string.argtypes = [ctypes.c_int]
        library.action_error_string.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        return f"the kernels do not load: {error}"
    return library


def unavailable() -> str | None:
    """Why this backend cannot run here, or None."""
    if not _HOST and not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    library = _load()
    return library if isinstance(library, str) else None


def supports(device_type: str, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Why this backend does not take these tensors, or None."""
    if device_type != ("cpu" if _HOST else "cuda"):
        return f"takes {'CPU' if _HOST else 'CUDA'} tensors, not {device_type}"
    for dtype in dtypes:
        if dtype not in _DTYPES:
            return f"takes float32, float16 and bfloat16, not {dtype}"
    return None


def _on_device(x: Tensor) -> AbstractContextManager:
    return _one_at_a_time if _HOST else torch.cuda.device(x.device)


def _launch(name: str, x: Tensor, *arguments: Tensor | float | None) -> None:
    """Enqueue a kernel on the device of ``x``; tensors go as addresses, once they are what the kernel takes."""
    library = _load()
    device = x.get_device()
    with _on_device(x):
        values = [
            _address(name, i, kind, a, device) if isinstance(a, Tensor) else a
            for i, (kind, a) in enumerate(zip(_ARGUMENTS[name], arguments, strict=True))
        ]
        stream = None if _HOST else torch.cuda.current_stream().cuda_stream
        error = getattr(library, f"action_{name}")(*values, stream)
    if error:
        raise RuntimeError(f"CUDA kernel {name}: {library.action_error_string(error).decode()}")


def _address(name: str, position: int, kind: str, x: Tensor, device: int) -> int:
    """Address of a tensor that has the dtype of its argument's ``kind`` and lies where the kernel runs.

    Raises:
        ValueError: it has another dtype, is not contiguous, or lies elsewhere: a kernel would read or write beyond it.
    """
    wanted = _TENSORS.get(kind, kind)
    fits = wanted is None or (x.dtype is wanted and x.is_contiguous())
    if not fits or x.get_device() != device or x.is_meta:
        raise ValueError(
            f"argument {position} of the CUDA kernel {name} must be a contiguous {wanted or 'tensor'} on the device of "
            f"the others, got {x.dtype} of shape {tuple(x.shape)} with strides {x.stride()} on {x.device}"
        )
    return x.data_ptr()


@cache
def _processors(device: torch.device) -> int:
    """Multiprocessors of a GPU. On the CPU a few, so that work is split there too."""
    return 4 if _HOST else torch.cuda.get_device_properties(device).multi_processor_count


def _shares(processors: int, blocks: int, length: int) -> tuple[int, int]:
    """(number of shares, rows in each) of a walk over ``length`` rows, so that two blocks per processor run.

    A share has two tiles or more, where there are so many; none is empty.
    """
    wanted = max(1, min(2 * processors // blocks, length // (2 * _TILE)))
    span = _tiles(-(-length // wanted)) * _TILE
    return -(-length // span), span


def _tiles(rows: int) -> int:
    return -(-rows // _TILE)


def _tf32() -> bool:
    """Whether float32 products may be rounded to tf32, by PyTorch's own setting for CUDA matrix products."""
    matmul = torch.backends.cuda.matmul
    try:
        return matmul.fp32_precision == "tf32"
    except AttributeError:  # before PyTorch 2.9
        return matmul.allow_tf32


# -------------------------------------------------------------------------------------------------------- rows


class _Rows(NamedTuple):
    """Contiguous rows: row i stands for ``data[i] * scale[i]``."""

    data: Tensor  # [G, N, padded D]
    scale: Tensor  # [G, N or more] float32
    inverse: Tensor | None  # [G, N] 1 / length, negative where that did not count


def _matrix(x: Tensor) -> tuple[Tensor, int, int, int, int]:
    return (x, _DTYPES[x.dtype], *x.stride())


def _prepare(x: Tensor, dtype: torch.dtype, normalize: bool, tf32: bool = False) -> _Rows:
    """Rows for the products of tiles."""
    groups, rows, features = x.shape
    step = _PART // dtype.itemsize
    width = -(-features // step) * step
    data = torch.empty((groups, rows, width), dtype=dtype, device=x.device)
    padded = _tiles(rows) * _TILE
    scale = torch.empty((groups, padded), dtype=torch.float32, device=x.device)
    _launch(
        "prepare", x, *_matrix(x), data, _DTYPES[dtype], scale, None,
        groups, rows, features, width, padded, normalize, tf32,
    )  # fmt: skip
    return _Rows(data, scale, None)


def _prepare_all(normalize: bool, *tensors: Tensor) -> tuple[list[_Rows], bool]:
    """All in one dtype for the products: their own if they share it, otherwise float32; and whether that is tf32."""
    dtype = tensors[0].dtype if len({x.dtype for x in tensors}) == 1 else torch.float32
    tf32 = dtype == torch.float32 and _tf32()
    return [_prepare(x, dtype, normalize, tf32) for x in tensors], tf32


def _prepare_queries(x: Tensor, normalize: bool) -> _Rows:
    """Rows for gathers: float32, padded to four features."""
    groups, rows, features = x.shape
    width = -(-features // 4) * 4
    data = torch.empty((groups, rows, width), dtype=torch.float32, device=x.device)
    scale, inverse = torch.empty((2, groups, rows), dtype=torch.float32, device=x.device)
    _launch(
        "prepare", x, *_matrix(x), data, _DTYPES[torch.float32], scale, inverse,
        groups, rows, features, width, rows, normalize, False,
    )  # fmt: skip
    return _Rows(data, scale, inverse)


def _finish(partial: Tensor, raw: Tensor, normalize: bool, constant: float, factor: Tensor | None = None) -> Tensor:
    """Gradient in the raw rows: partial sums [parts, G, N, padded D] times ``constant * factor``."""
    parts, groups, rows, width = partial.shape
    out = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
    _launch(
        "finish", raw, partial, parts, factor, constant, *_matrix(raw), out,
        groups, rows, raw.shape[2], width, normalize,
    )  # fmt: skip
    return out


# ------------------------------------------------------------------------------------- distillation and selection


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
    rows, tf32 = _prepare_all(normalize, student, teacher, bank)
    groups, queries, _ = student.shape
    statistics, keys = _scan(*rows, tf32, k, student_temp, teacher_temp, query_labels, bank_labels)
    kl = student.new_empty((groups, queries), dtype=torch.float32)
    student_lse, teacher_lse = (torch.empty_like(kl, dtype=torch.float64) for _ in range(2))
    _launch(
        "merge", kl, statistics, statistics.shape[1], groups * queries, student_temp, teacher_temp,
        kl, student_lse, teacher_lse,
    )  # fmt: skip
    if direction:
        terms, _ = _terms(*rows[:2], None, None, student_lse, teacher_lse, student_temp, teacher_temp)
        boost = _boost(normalize)
        partial = _contrast_gradient(*rows, tf32, False, terms, student_temp, teacher_temp, (0.0, 0.0, boost))
        slope = _finish(partial, student, normalize, 1.0 / (student_temp * boost))
    else:
        slope = kl.new_empty(0, dtype=kl.dtype)
    return ContrastResult(kl, student_lse, teacher_lse, slope, *_in_order(keys, k))


def hard_negatives(
    query: Tensor,
    bank: Tensor,
    k: int,
    query_labels: Tensor | None,
    bank_labels: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    (query_rows, bank_rows), tf32 = _prepare_all(normalize, query, bank)
    _, keys = _scan(query_rows, None, bank_rows, tf32, k, 1.0, 1.0, query_labels, bank_labels)
    return _in_order(keys, k)


class ScanPlan(NamedTuple):
    """How a pass over the bank is divided, and the room for its selection."""

    works: int  # walks of a block over a share of the bank
    shares: int
    span: int  # bank rows of a share
    running: int  # blocks at a time
    kept: int  # candidates that a share hands on, for a query
    limit: int  # candidates that a clearing may leave
    capacity: int  # of a query's buffer
    quota: int  # what each share has of the k


def plan_scan(processors: int, groups: int, queries: int, rows: int, k: int) -> ScanPlan:
    """The pass that selects k of ``rows`` rows, on a GPU of so many multiprocessors."""
    blocks = groups * _tiles(queries)
    shares, span = _shares(processors, blocks, rows)
    works = running = blocks * shares
    kept, limit, capacity = min(k, span), 0, 0
    if k > 0:
        room = max(kept, 2 * _TILE)  # for new candidates
        capacity, limit = kept + room + _TILE, kept + room // 4
        affordable = max(1, _BUFFER_BYTES // (8 * _TILE * capacity))
        running = min(works, 4 * processors, affordable)
    return ScanPlan(works, shares, span, running, kept, limit, capacity, -(-k // shares))


def _scan(
    student: _Rows,
    teacher: _Rows | None,
    bank: _Rows,
    tf32: bool,
    k: int,
    student_temp: float,
    teacher_temp: float,
    query_labels: Tensor | None,
    bank_labels: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One pass over the bank: sums [5, shares, G, N] for :func:`_merge`, candidates [G, N, any number] as keys."""
    groups, queries, width = student.data.shape
    rows, device = bank.data.shape[1], student.data.device
    plan = plan_scan(_processors(device), groups, queries, rows, k)
    shares = plan.shares
    statistics = buffer = floors = None
    if teacher is not None:
        statistics = torch.empty((5, shares, groups, queries), dtype=torch.float32, device=device)
    keys = torch.empty((groups, queries, shares * plan.kept), dtype=torch.int64, device=device)
    if k > 0:
        buffer = torch.empty((plan.running, _TILE, plan.capacity), dtype=torch.int64, device=device)
        if shares > 1:  # what shares tell each other
            floors = torch.full((groups, queries, shares), -(2**31), dtype=torch.int32, device=device)
    if query_labels is None or bank_labels is None:
        query_labels = bank_labels = None
    else:
        query_labels, bank_labels = query_labels.contiguous(), bank_labels.contiguous()
    _launch(
        "scan", student.data, student.data, student.scale, *((None, None) if teacher is None else teacher[:2]),
        bank.data, bank.scale, _DTYPES[student.data.dtype], tf32, width * student.data.itemsize,
        groups, queries, student.scale.shape[1], rows, bank.scale.shape[1], shares, plan.span,
        _LOG2E / student_temp, _LOG2E / teacher_temp, query_labels, bank_labels,
        plan.kept, plan.limit, plan.capacity, plan.quota, buffer, floors, statistics, keys, plan.running,
    )  # fmt: skip
    return statistics, keys


def _in_order(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Similarities and rows, both [G, N, k], of the k best of ``keys``, in descending order."""
    groups, queries, count = keys.shape
    similarity = torch.empty((groups, queries, k), dtype=torch.float32, device=keys.device)
    index = torch.empty((groups, queries, k), dtype=torch.int64, device=keys.device)
    if k == 0:
        return similarity, index
    if count > _SORTED:
        keys = keys.topk(min(k, count), sorted=True).values
        count = keys.shape[2]
    if count <= _SORTED:
        _launch("order", keys, keys, groups * queries, count, k, similarity, index)
        return similarity, index
    keys = torch.nn.functional.pad(keys, (0, k - count), value=_EMPTY)
    empty = keys == _EMPTY
    ordered = (keys >> 32).int()
    values = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    rows = 0xFFFFFFFF - (keys & 0xFFFFFFFF)
    return values.masked_fill(empty, -torch.inf), rows.masked_fill(empty, -1)


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
    rows, tf32 = _prepare_all(normalize, student, teacher, bank)
    terms, factor = _terms(
        *rows[:2], grad_kl.contiguous(), kl.contiguous(), student_lse.contiguous(), teacher_lse.contiguous(),
        student_temp, teacher_temp,
    )  # fmt: skip
    temp, boost = min(student_temp, teacher_temp), _boost(normalize)
    slopes = temp / student_temp, temp / teacher_temp / _LOG2E, boost
    partial = _contrast_gradient(*rows, tf32, True, terms, student_temp, teacher_temp, slopes)
    return _finish(partial, bank, normalize, 1.0 / (temp * boost), factor)


def _boost(normalize: bool) -> float:
    """Factor on weights: scales of unit rows are 1/256 to 1/128; float16 has its finest numbers around 1 to 1000."""
    return 2.0**16 if normalize else 1.0


def _terms(
    student: _Rows,
    teacher: _Rows,
    grad_kl: Tensor | None,
    kl: Tensor | None,
    student_lse: Tensor,
    teacher_lse: Tensor,
    student_temp: float,
    teacher_temp: float,
) -> tuple[Tensor, Tensor]:
    """Eight floats per query from which a gradient takes its probabilities, and the factor on all of its sums."""
    groups, queries = student_lse.shape
    padded = student.scale.shape[1]
    terms = torch.empty((groups, padded, 8), dtype=torch.float32, device=student_lse.device)
    factor = terms.new_empty(1, dtype=terms.dtype)
    # What is no number stays one in its own group, and is no measure for the others.
    largest = None if grad_kl is None else grad_kl.abs().nan_to_num(0.0, 0.0, 0.0).amax()
    _launch(
        "terms", terms, student.scale, teacher.scale, student_lse, teacher_lse, grad_kl, kl, largest, terms, factor,
        groups, queries, padded, student_temp, teacher_temp,
    )  # fmt: skip
    return terms, factor


def _contrast_gradient(
    student: _Rows,
    teacher: _Rows,
    bank: _Rows,
    tf32: bool,
    for_bank: bool,
    terms: Tensor,
    student_temp: float,
    teacher_temp: float,
    slopes: tuple[float, float, float],
) -> Tensor:
    """Partial sums [shares, G, rows, padded D] of the divergence's gradient in the bank's rows or the student's."""
    groups, queries, width = student.data.shape
    rows, device = bank.data.shape[1], terms.device
    kept, streamed = (rows, queries) if for_bank else (queries, rows)
    pitch = width * student.data.itemsize
    columns = -(-pitch // 256)  # blocks that share the columns of a result
    shares, span = _shares(_processors(device), groups * _tiles(kept) * columns, streamed)
    partial = torch.empty((shares, groups, kept, width), dtype=torch.float32, device=device)
    _launch(
        "contrast_gradient", terms, for_bank, student.data, teacher.data, bank.data, terms, bank.scale,
        _DTYPES[student.data.dtype], tf32, pitch, groups, queries, student.scale.shape[1], rows, bank.scale.shape[1],
        shares, span, _LOG2E / student_temp, _LOG2E / teacher_temp, *slopes, partial,
    )  # fmt: skip
    return partial


# ------------------------------------------------------------------------------------------------ what is named


def selection_gradient(
    grad_similarity: Tensor,
    query: Tensor,
    bank: Tensor,
    index: Tensor,
    normalize: bool,
    query_gradient: bool,
    bank_gradient: bool,
) -> tuple[Tensor, Tensor]:
    rows = _prepare_queries(query, normalize)
    grad_similarity, index = grad_similarity.contiguous(), index.contiguous()
    grad_query = _gradient(query, query_gradient)
    if query_gradient:
        _gather(rows, None, bank, index, 1.0, normalize, given=grad_similarity, grad_query=grad_query)
    if not bank_gradient:
        return grad_query, _gradient(bank, False)
    return grad_query, _scatter(grad_similarity, rows, bank, index, normalize)


def anatomical_contrast(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    index: Tensor,
    temp: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    rows = [_prepare_queries(x, normalize) for x in (query, positive)]
    loss = query.new_empty(query.shape[:2], dtype=torch.float32)
    lse = query.new_empty(query.shape[:2], dtype=torch.float64)
    _gather(*rows, bank, index.contiguous(), temp, normalize, lse=lse, loss=loss)
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
    rows = [_prepare_queries(x, normalize) for x in (query, positive)]
    index = index.contiguous()
    grad_query, grad_positive = _gradient(query, query_gradient), _gradient(positive, positive_gradient)
    weights = query.new_empty(index.shape, dtype=torch.float32) if bank_gradient else None
    _gather(
        *rows, bank, index, temp, normalize, grad_loss=grad_loss.contiguous(), lse=lse.contiguous(), weights=weights,
        grad_query=grad_query if query_gradient else None, grad_positive=grad_positive if positive_gradient else None,
    )  # fmt: skip
    if weights is None:
        return grad_query, grad_positive, _gradient(bank, False)
    return grad_query, grad_positive, _scatter(weights, rows[0], bank, index, normalize)


def _gradient(x: Tensor, wanted: bool) -> Tensor:
    return torch.empty(x.shape if wanted else 0, dtype=torch.float32, device=x.device)


def _gather(
    query: _Rows,
    positive: _Rows | None,
    bank: Tensor,
    index: Tensor,
    temp: float,
    normalize: bool,
    *,
    given: Tensor | None = None,
    grad_loss: Tensor | None = None,
    lse: Tensor | None = None,
    loss: Tensor | None = None,
    weights: Tensor | None = None,
    grad_query: Tensor | None = None,
    grad_positive: Tensor | None = None,
) -> None:
    """The loss over named rows where ``loss`` is wanted, otherwise gradients of named similarities."""
    groups, queries, width = query.data.shape
    _launch(
        "gather", bank, *query, *(positive or (None, None, None)), *_matrix(bank), index, given, grad_loss,
        lse, loss, weights, grad_query, grad_positive,
        groups, queries, bank.shape[1], index.shape[2], bank.shape[2], width, temp, normalize,
    )  # fmt: skip


def _scatter(weights: Tensor, query: _Rows, bank: Tensor, index: Tensor, normalize: bool) -> Tensor:
    """Gradient [G, M, D] of the bank: for each of its rows the entries that name it, in the order of the queries."""
    groups, queries, width = query.data.shape
    rows, k = bank.shape[1], index.shape[2]
    named = torch.where((index >= 0) & (index < rows), index, rows).flatten(1)  # entries that count for nobody last
    named, order = named.sort(dim=-1, stable=True)
    borders = torch.arange(rows + 1, dtype=torch.int64, device=index.device).expand(groups, -1).contiguous()
    starts = torch.searchsorted(named, borders)
    grad_bank = _gradient(bank, True)
    _launch(
        "scatter", bank, query.data, query.scale, *_matrix(bank), order, starts, weights, grad_bank,
        groups, queries, rows, k, bank.shape[2], width, normalize,
    )  # fmt: skip
    return grad_bank


def relation_negatives(
    query_labels: Tensor,
    thresholds: Tensor,
    class_start: Tensor,
    rows: Tensor,
    k: int,
    seed: int,
) -> Tensor:
    groups, queries = query_labels.shape
    index = torch.empty((groups, queries, k), dtype=torch.int64, device=query_labels.device)
    tables = [x.contiguous() for x in (query_labels, thresholds, class_start, rows)]
    _launch("relation_negatives", index, *tables, index, groups, queries, rows.shape[1], thresholds.shape[1], k, seed)
    return index
