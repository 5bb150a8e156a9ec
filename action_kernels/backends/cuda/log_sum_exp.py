"""The log-sum-exp of the similarities to a bank, and its gradients: the passes of action_contrast without a teacher."""

from __future__ import annotations

from torch import Tensor

from ..gpu import Partial, boost
from .bank_pass import bank_pass
from .finish_and_collect import finish_and_collect
from .gradient import gradient, query_terms
from .merge_and_limit import merge_and_limit
from .rows import prepare_all


def log_sum_exp(
    query: Tensor, bank: Tensor, temp: float, normalize: bool, with_query_grad: bool
) -> tuple[Tensor, Tensor]:
    (query_rows, bank_rows), tf32 = prepare_all(normalize, query, bank)
    sums, _ = bank_pass(query_rows, None, bank_rows, tf32, temp, with_lse=True)
    merged = merge_and_limit(sums, None, query_rows, None, temp, with_terms=with_query_grad)
    assert merged.lse is not None  # it was asked for
    partial = None
    if merged.terms is not None:
        factor = boost(normalize)
        parts = gradient(query_rows, None, bank_rows, tf32, False, merged.terms, temp, temp, (0.0, 0.0, factor))
        partial = Partial(parts, 1.0 / (temp * factor))
    return merged.lse, finish_and_collect(partial, query, normalize)


def log_sum_exp_bank_gradient(
    grad_lse: Tensor, query: Tensor, bank: Tensor, lse: Tensor, temp: float, normalize: bool
) -> Tensor:
    (query_rows, bank_rows), tf32 = prepare_all(normalize, query, bank)
    upstream = grad_lse.float().contiguous()
    terms, factor = query_terms(upstream, query_rows, None, lse.contiguous(), None, temp, temp)
    grad_scales = 1.0, 0.0, boost(normalize)
    parts = gradient(query_rows, None, bank_rows, tf32, True, terms, temp, temp, grad_scales)
    return finish_and_collect(Partial(parts, 1.0 / (temp * boost(normalize)), factor), bank, normalize)
