"""The operators' formulas, written for the tests alone, and the rule of agreement.

Everything is differentiated by PyTorch's autograd, so no gradient formula is shared with the package. In float64 a
formula is the truth; in the working dtype the same lines are the plain PyTorch program that the operators replace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# N, M, D, groups: one of each, odd sizes, several blocks of any plausible tile.
SHAPES = [
    (1, 1, 1, None),
    (1, 300, 5, None),
    (301, 1, 17, None),
    (7, 36, 512, None),
    (67, 259, 33, None),
    (133, 1030, 64, None),
    (262, 390, 129, None),
    (5, 37, 24, 3),
    (65, 130, 40, 2),
]


def unit(x: Tensor, normalize: bool = True) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12) if normalize else x


def similarities(query: Tensor, bank: Tensor, normalize: bool = True) -> Tensor:
    return torch.einsum("...nd,...md->...nm", unit(query, normalize), unit(bank, normalize))


def distillation(
    student: Tensor,
    teacher: Tensor,
    bank: Tensor,
    student_temp: float = 0.1,
    teacher_temp: float = 0.01,
    normalize: bool = True,
) -> Tensor:
    """KL(p_t || p_s), row by row."""
    log_ps = torch.log_softmax(similarities(student, bank, normalize) / student_temp, dim=-1)
    log_pt = torch.log_softmax(similarities(teacher, bank, normalize) / teacher_temp, dim=-1)
    return (log_pt.exp() * (log_pt - log_ps)).sum(-1)


def selection(
    similarity: Tensor, k: int, query_labels: Tensor | None = None, bank_labels: Tensor | None = None
) -> list[list[int]]:
    """Columns of the k largest eligible entries of every row of [N, M], largest first, ties to the lower column."""
    chosen = []
    for i, row in enumerate(similarity.tolist()):
        columns = [j for j, s in enumerate(row) if not math.isnan(s)]
        if query_labels is not None:
            columns = [j for j in columns if bank_labels[j] >= 0 and bank_labels[j] != query_labels[i]]
        columns.sort(key=lambda j: (-row[j], j))
        chosen.append((columns + [-1] * k)[:k])
    return chosen


def info_nce(
    query: Tensor, positive: Tensor, bank: Tensor, index: Tensor, temp: float = 0.5, normalize: bool = True
) -> Tensor:
    """Cross-entropy of the positive against the named bank rows of [M, D], gathered; -1 is left out."""
    query, positive, bank = unit(query, normalize), unit(positive, normalize), unit(bank, normalize)
    positive_logit = (query * positive).sum(-1, keepdim=True) / temp
    negative_logits = torch.einsum("nd,nkd->nk", query, bank[index.clamp(min=0)]) / temp
    negative_logits = negative_logits.masked_fill(index < 0, -math.inf)
    return -torch.log_softmax(torch.cat([positive_logit, negative_logits], dim=-1), dim=-1)[:, 0]


# ------------------------------------------------------------------------------------------------ relation draws


def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011)."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * x0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * x2, 1 << 32)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % (1 << 32), (k1 + 0xBB67AE85) % (1 << 32)
    return x0, x1, x2, x3


def relation_draws(
    query_labels: list[int],
    bank_labels: list[int],
    relation: list[list[float]],
    k: int,
    seed: int,
    group: int = 0,
) -> list[list[int]]:
    """One group's draws, one at a time."""
    classes = len(relation)
    members = [[j for j, label in enumerate(bank_labels) if label == v] for v in range(classes)]
    steps = 2 ** min(24, 30 - math.ceil(math.log2(classes)))
    result = []
    for i, c in enumerate(query_labels):
        weights = [0.0] * classes
        if 0 <= c < classes:
            weights = [relation[c][v] if v != c and members[v] else 0.0 for v in range(classes)]
        largest = max(weights)
        whole = [math.floor(w / largest * steps) if largest > 0 else 0 for w in weights]
        draws = []
        for j in range(k):
            w0, w1, _, _ = philox((j, i, group, 0), (seed % (1 << 32), seed >> 32))
            target = w0 * sum(whole) // (1 << 32)
            drawn = -1
            for v in range(classes):
                if target < sum(whole[: v + 1]):
                    drawn = members[v][w1 * len(members[v]) // (1 << 32)]
                    break
            draws.append(drawn)
        result.append(draws)
    return result


# ---------------------------------------------------------------------------------------------------- agreement


def neighbours(n: int, m: int, d: int, groups: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """student, teacher, bank in float32: every query lies near some bank rows, so that no softmax is flat."""
    leading = () if groups is None else (groups,)
    bank = torch.randn(*leading, m, d)
    near = torch.randint(m, (*leading, n, 1)).expand(*leading, n, d)
    teacher = bank.gather(-2, near) + 0.5 * torch.randn(*leading, n, d)
    student = teacher + 0.7 * torch.randn(*leading, n, d)
    return student, teacher, bank


def differentiate(function: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    """The value of ``function`` per row and its gradients in ``inputs``, each row weighted by ``upstream``."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    value = function(*leaves)
    gradients = torch.autograd.grad(value, leaves, upstream.to(value))
    return [value.detach(), *gradients]


def errors(result: Tensor, exact: Tensor) -> tuple[float, float]:
    """Error against float64 by relative L2 norm, and of the worst element relative to the largest one.

    Where the truth is zero (a bank of one row, rows of one feature) the errors are absolute.
    """
    difference = result.double().cpu() - exact
    norm, largest = exact.norm().item(), exact.abs().max().item()
    if largest < 1e-12:
        norm = largest = 1.0
    return difference.norm().item() / norm, difference.abs().max().item() / largest


def assert_as_good_as_plain(
    ours: Sequence[Tensor],
    plain: Sequence[Tensor],
    exact: Sequence[Tensor],
    temp: float = 1.0,
    similarity: float = 1.0,
    terms: int = 16,
) -> None:
    """Each of our tensors is as near to float64 as plain PyTorch, up to a few roundings.

    One float32 rounding of a ``similarity`` (1 between unit vectors) is worth eps / ``temp`` in every probability; a
    float32 sum of n ``terms`` strays by sqrt(n) eps / 2; the last rounding is that to the tensor's own dtype.
    """
    for i, (result, rival, truth) in enumerate(zip(ours, plain, exact, strict=True)):
        assert truth.dtype == torch.float64
        assert result.shape == truth.shape
        tolerance = (
            torch.finfo(torch.float32).eps * (similarity / temp + terms**0.5 / 2) + torch.finfo(result.dtype).eps / 2
        )
        for ours_error, plain_error in zip(errors(result, truth), errors(rival, truth), strict=True):
            assert ours_error <= plain_error + tolerance, (
                f"tensor {i}: error {ours_error:.3g}, plain PyTorch {plain_error:.3g}, tolerance {tolerance:.3g}"
            )
