"""The specification in plain PyTorch: every formula spelled out, every similarity stored, any device and dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from .interface import ContrastResult

_SMALLEST_NORM = 1e-12


def unavailable() -> str | None:
    return None


def supports(device_type: str, dtypes: tuple[torch.dtype, ...]) -> str | None:
    return None


# ---------------------------------------------------------------------------------------------------------- rows


def _working(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def _rows(x: Tensor, normalize: bool, dtype: torch.dtype) -> Tensor:
    """The rows that enter the products: ``x`` itself or x / max(|x|, 1e-12)."""
    x = x.to(dtype)
    return x / _norm(x) if normalize else x


def _norm(x: Tensor) -> Tensor:
    # In float64: the squares of huge elements overflow float32.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
    return norm.to(x.dtype).clamp_min(_SMALLEST_NORM)


def _raw_gradient(grad: Tensor, x: Tensor, normalize: bool) -> Tensor:
    """Gradient in the raw rows ``x`` from that in the rows of :func:`_rows`: (g - u <u, g>) / |x|."""
    if not normalize:
        return grad
    x = x.to(grad.dtype)
    norm = _norm(x)
    unit = x / norm
    radial = unit * (unit * grad).sum(-1, keepdim=True)
    return (grad - torch.where(norm > _SMALLEST_NORM, radial, 0.0)) / norm  # a clamped norm is a constant


# -------------------------------------------------------------------------------------------------- distillation


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
    dtype = _working(student, teacher, bank)
    bank_rows = _rows(bank, normalize, dtype)
    student_similarity = _rows(student, normalize, dtype) @ bank_rows.mT
    student_logits = student_similarity / student_temp
    teacher_logits = _rows(teacher, normalize, dtype) @ bank_rows.mT / teacher_temp
    log_ps, student_lse = _log_softmax(student_logits)
    log_pt, teacher_lse = _log_softmax(teacher_logits)
    kl = (log_pt.exp() * (log_pt - log_ps)).sum(-1)
    if direction:
        grad = (log_ps.exp() - log_pt.exp()) @ bank_rows / student_temp
        slope = _raw_gradient(grad, student, normalize)
    else:
        slope = kl.new_empty(0, dtype=kl.dtype)
    similarity, index = _largest(student_similarity, k, query_labels, bank_labels)
    return ContrastResult(kl, student_lse, teacher_lse, slope, similarity, index)


def _log_softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of every row and its log-sum-exp in float64."""
    shift = logits.amax(-1, keepdim=True)
    log_sum = (logits - shift).exp().sum(-1, keepdim=True).log()
    return logits - shift - log_sum, (shift.double() + log_sum).squeeze(-1)


def _log_probability(logits: Tensor, lse: Tensor) -> Tensor:
    """logits - lse without rounding lse, an error that all of a row's probabilities would share."""
    return (logits.double() - lse.unsqueeze(-1)).to(logits.dtype)


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
    dtype = _working(student, teacher, bank)
    bank_rows = _rows(bank, normalize, dtype)
    student_rows = _rows(student, normalize, dtype)
    teacher_rows = _rows(teacher, normalize, dtype)
    log_ps = _log_probability(student_rows @ bank_rows.mT / student_temp, student_lse)
    log_pt = _log_probability(teacher_rows @ bank_rows.mT / teacher_temp, teacher_lse)
    upstream = grad_kl.unsqueeze(-1)
    student_weight = upstream * (log_ps.exp() - log_pt.exp()) / student_temp
    teacher_weight = upstream * log_pt.exp() * (log_pt - log_ps - kl.unsqueeze(-1)) / teacher_temp
    grad = student_weight.mT @ student_rows + teacher_weight.mT @ teacher_rows
    return _raw_gradient(grad, bank, normalize)


# ----------------------------------------------------------------------------------------------------- selection


def _largest(
    similarity: Tensor, k: int, query_labels: Tensor | None, bank_labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The k largest eligible similarities of each row, descending, and their columns; ties to the lower column."""
    if k == 0:
        none = similarity.new_empty((*similarity.shape[:-1], 0), dtype=similarity.dtype)
        return none, none.long()
    eligible = ~similarity.isnan()
    if query_labels is not None and bank_labels is not None:
        other_class = query_labels.unsqueeze(-1) != bank_labels.unsqueeze(-2)
        eligible &= other_class & (bank_labels >= 0).unsqueeze(-2)
    candidates = similarity.masked_fill(~eligible, -torch.inf)
    value, index = candidates.sort(dim=-1, descending=True, stable=True)
    value, index = value[..., :k], index[..., :k]
    index = index.masked_fill(value == -torch.inf, -1)
    missing = k - value.shape[-1]  # a bank shorter than k
    pad = torch.nn.functional.pad
    return pad(value, (0, missing), value=-torch.inf).contiguous(), pad(index, (0, missing), value=-1).contiguous()


def hard_negatives(
    query: Tensor,
    bank: Tensor,
    k: int,
    query_labels: Tensor | None,
    bank_labels: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    dtype = _working(query, bank)
    similarity = _rows(query, normalize, dtype) @ _rows(bank, normalize, dtype).mT
    return _largest(similarity, k, query_labels, bank_labels)


def selection_gradient(
    grad_similarity: Tensor,
    query: Tensor,
    bank: Tensor,
    index: Tensor,
    normalize: bool,
    query_gradient: bool,
    bank_gradient: bool,
) -> tuple[Tensor, Tensor]:
    weight = _scatter(grad_similarity, index, bank.shape[-2])
    return (
        _query_gradient(weight, query, bank, normalize) if query_gradient else weight.new_empty(0, dtype=weight.dtype),
        _bank_gradient(weight, query, bank, normalize) if bank_gradient else weight.new_empty(0, dtype=weight.dtype),
    )


def _scatter(values: Tensor, index: Tensor, columns: int) -> Tensor:
    """values[..., n, j] added at [..., n, index[..., n, j]]; an index outside 0..columns-1 adds nothing."""
    spare = torch.where((index >= 0) & (index < columns), index, columns)  # a column to throw away
    return values.new_zeros((*index.shape[:-1], columns + 1), dtype=values.dtype).scatter_add(-1, spare, values)[
        ..., :columns
    ]


def _query_gradient(weight: Tensor, query: Tensor, bank: Tensor, normalize: bool) -> Tensor:
    """Gradient in the raw queries of sum(weight * similarity)."""
    return _raw_gradient(weight @ _without_nan(_rows(bank, normalize, weight.dtype)), query, normalize)


def _bank_gradient(weight: Tensor, query: Tensor, bank: Tensor, normalize: bool) -> Tensor:
    """Gradient in the raw bank rows of sum(weight * similarity)."""
    return _raw_gradient(weight.mT @ _without_nan(_rows(query, normalize, weight.dtype)), bank, normalize)


def _without_nan(rows: Tensor) -> Tensor:
    """Rows with a NaN as zero. Where one counts its weight is NaN already; elsewhere 0 * NaN would spread it."""
    return rows.masked_fill(rows.isnan().any(-1, keepdim=True), 0.0)


# ------------------------------------------------------------------------------------------------- relation draws

_WORD = 0xFFFFFFFF


def _philox(counter: tuple[Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor]:
    """First two words of Philox4x32-10 (Salmon et al., SC 2011) at counter (c0, c1, c2, 0), 32-bit words in int64."""
    c0, c1, c2 = counter
    c3 = torch.zeros_like(c0)
    key0, key1 = seed & _WORD, seed >> 32 & _WORD
    for _ in range(10):
        # The product wraps modulo 2**64, which keeps all the bits asked for.
        even, odd = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (odd >> 32 & _WORD) ^ c1 ^ key0,
            odd & _WORD,
            (even >> 32 & _WORD) ^ c3 ^ key1,
            even & _WORD,
        )
        key0, key1 = key0 + 0x9E3779B9 & _WORD, key1 + 0xBB67AE85 & _WORD
    return c0, c1


def relation_negatives(
    query_labels: Tensor,
    thresholds: Tensor,
    class_start: Tensor,
    rows: Tensor,
    k: int,
    seed: int,
) -> Tensor:
    groups, queries = query_labels.shape
    classes = thresholds.shape[-1]
    device = query_labels.device
    draw = torch.arange(k, dtype=torch.int64, device=device).view(1, 1, k)
    query = torch.arange(queries, dtype=torch.int64, device=device).view(1, queries, 1)
    group = torch.arange(groups, dtype=torch.int64, device=device).view(groups, 1, 1)
    word0, word1 = _philox(torch.broadcast_tensors(draw, query, group), seed)

    label = query_labels.clamp_min(0)
    cumulative = thresholds.gather(1, label.unsqueeze(-1).expand(-1, -1, classes))  # [G, N, C]
    total = cumulative[..., -1:]
    drawn_class = torch.searchsorted(cumulative, word0 * total >> 32, right=True).clamp_max(classes - 1)
    flat = drawn_class.flatten(1)
    start = class_start.gather(1, flat).view_as(drawn_class)
    size = class_start.gather(1, flat + 1).view_as(drawn_class) - start
    position = (start + (word1 * size >> 32)).clamp_max(rows.shape[-1] - 1)
    index = rows.gather(1, position.flatten(1)).view_as(position)
    return index.masked_fill((query_labels < 0).unsqueeze(-1) | (total == 0), -1)


# ------------------------------------------------------------------------------------------- anatomical contrast


def _contrast_logits(
    query: Tensor, positive: Tensor, bank: Tensor, temp: float, normalize: bool
) -> tuple[Tensor, Tensor]:
    dtype = _working(query, positive, bank)
    query_rows = _rows(query, normalize, dtype)
    positive_logit = (query_rows * _rows(positive, normalize, dtype)).sum(-1) / temp
    return positive_logit, query_rows @ _rows(bank, normalize, dtype).mT / temp


def anatomical_contrast(
    query: Tensor,
    positive: Tensor,
    bank: Tensor,
    index: Tensor,
    temp: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    positive_logit, bank_logits = _contrast_logits(query, positive, bank, temp, normalize)
    valid = (index >= 0) & (index < bank.shape[-2])
    negative_logits = bank_logits.gather(-1, torch.where(valid, index, 0)).masked_fill(~valid, -torch.inf)
    log_probability, lse = _log_softmax(torch.cat([positive_logit.unsqueeze(-1), negative_logits], dim=-1))
    return -log_probability[..., 0], lse


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
    positive_logit, bank_logits = _contrast_logits(query, positive, bank, temp, normalize)
    # d loss / d similarity: (p - 1) / temp for the positive, p / temp for a negative, as often as it was drawn.
    slope = grad_loss / temp
    positive_weight = slope.unsqueeze(-1) * _log_probability(positive_logit.unsqueeze(-1), lse).expm1()
    draws = _scatter(torch.ones_like(index, dtype=slope.dtype), index, bank.shape[-2])
    probability = _log_probability(bank_logits, lse).exp()
    weight = torch.where(draws > 0, draws * probability * slope.unsqueeze(-1), 0.0)

    grad_query, grad_positive, grad_bank = (slope.new_empty(0, dtype=slope.dtype) for _ in range(3))
    if query_gradient:
        toward_positive = positive_weight * _rows(positive, normalize, weight.dtype)
        grad = toward_positive + weight @ _without_nan(_rows(bank, normalize, weight.dtype))
        grad_query = _raw_gradient(grad, query, normalize)
    if positive_gradient:
        grad = positive_weight * _rows(query, normalize, weight.dtype)
        grad_positive = _raw_gradient(grad, positive, normalize)
    if bank_gradient:
        grad_bank = _bank_gradient(weight, query, bank, normalize)
    return grad_query, grad_positive, grad_bank
