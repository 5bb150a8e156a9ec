"""Results for the parts of a divided bank, put together: pure functions, without a process group."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MergedStatistics(NamedTuple):
    """Of every query over the whole bank, float64."""

    kl: Tensor  # KL divergence
    student_lse: Tensor  # log-sum-exp of the student's logits
    teacher_lse: Tensor  # log-sum-exp of the teacher's logits


def merge_statistics(kl: Tensor, student_lse: Tensor, teacher_lse: Tensor) -> MergedStatistics:
    """The divergence over a whole bank from those over its parts.

    With S and T the log-sum-exps over the whole bank, S_r and T_r those over part r, and w_r = exp(T_r - T) the part's
    share of the teacher's distribution: KL = sum_r w_r (KL_r + (T_r - T) - (S_r - S)).

    Args:
        kl: [R, ...] of each part, in any order; float32 or float64.
        student_lse: [R, ...] float64; -inf for a part without rows.
        teacher_lse: likewise.

    Returns:
        All [...] in float64: where a divergence is small, its terms cancel almost entirely. A query that has no row in
        any part has the divergence 0.

    Raises:
        ValueError: the shapes differ, there is no part, or a log-sum-exp is not float64.
    """
    for name, x in (("student_lse", student_lse), ("teacher_lse", teacher_lse)):
        if x.dtype != torch.float64:
            raise ValueError(f"{name} must be float64, got {x.dtype}: lower precision loses small divergences")
        if x.shape != kl.shape:
            raise ValueError(f"{name} must have the shape of kl, got {tuple(x.shape)} and {tuple(kl.shape)}")
    if kl.dim() == 0 or len(kl) == 0:
        raise ValueError(f"kl must be [R, ...] with R >= 1 parts, got shape {tuple(kl.shape)}")
    student, teacher = student_lse.logsumexp(dim=0), teacher_lse.logsumexp(dim=0)
    t_log, s_log = teacher_lse - teacher, student_lse - student  # of each part's share; NaN without any row
    empty = teacher_lse == -torch.inf
    term = t_log.exp() * (kl.double() + t_log - s_log)
    return MergedStatistics(torch.where(empty, 0.0, term).sum(dim=0), student, teacher)


def merge_selection(similarity: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best of candidates that were found in several parts of a bank.

    Args:
        similarity: [..., any number] of the candidates.
        index: their rows in the whole bank; -1 is no candidate.
        k: wanted.

    Returns:
        ``(similarity, index)``, both [..., k], in descending order, ties to the lower index; -inf and -1 where no
        candidate is left.

    Raises:
        ValueError: the shapes differ, or ``k`` < 0.
    """
    if similarity.shape != index.shape or similarity.dim() == 0:
        raise ValueError(
            f"similarity and index must have one shape [..., candidates], got {tuple(similarity.shape)} and "
            f"{tuple(index.shape)}"
        )
    if k < 0:
        raise ValueError(f"k must be at least 0, got {k}")
    there = index >= 0
    # By index first: the second sort keeps the order of equals, and candidates that are none come last.
    by_index = torch.where(there, index, torch.iinfo(index.dtype).max).argsort(dim=-1, stable=True)
    similarity = torch.where(there, similarity, -torch.inf).gather(-1, by_index)
    index = index.gather(-1, by_index)
    order = similarity.argsort(dim=-1, stable=True, descending=True)[..., :k]
    similarity, index = similarity.gather(-1, order), index.gather(-1, order)
    missing = k - index.shape[-1]
    if missing > 0:
        similarity = torch.nn.functional.pad(similarity, (0, missing), value=-torch.inf)
        index = torch.nn.functional.pad(index, (0, missing), value=-1)
    return similarity, index
