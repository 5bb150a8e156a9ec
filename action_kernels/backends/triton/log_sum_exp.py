"""The log-sum-exp of the similarities to a bank, and its gradients: the passes of action_contrast without a teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from .bank_gradient import bank_gradient
from .bank_pass import bank_pass
from .finish_and_collect import finish_and_collect
from .merge_and_limit import merge_and_limit
from .rows import prepare_all, rows_dtype
from .student_gradient import student_gradient
from .tiles import bank_pass_tile, student_grad_tile


def log_sum_exp(
    query: Tensor, bank: Tensor, temp: float, normalize: bool, with_query_grad: bool
) -> tuple[Tensor, Tensor]:
    kind = query.shape[2], rows_dtype(normalize, query, bank), query.device
    query_rows, bank_rows = prepare_all(normalize, query, bank)
    tile = bank_pass_tile(*kind)
    sums, _ = bank_pass(query_rows, None, bank_rows, tile, temp, temp, normalize, with_lse=True)
    merged = merge_and_limit(sums, None, query_rows, None, bank_rows, temp, temp, with_centers=with_query_grad)
    assert merged.statistics is not None  # wanted
    query_grad = query.new_empty(0, dtype=torch.float32)
    if merged.centers is not None:
        rows = query_rows, None, bank_rows
        grad_tile = student_grad_tile(*kind, pair=False)
        partial = student_gradient(*rows, grad_tile, query, merged.centers, temp, temp, normalize)
        query_grad = finish_and_collect(partial, query, normalize)
    return merged.statistics, query_grad


def log_sum_exp_bank_gradient(
    grad_lse: Tensor, query: Tensor, bank: Tensor, lse: Tensor, temp: float, normalize: bool
) -> Tensor:
    query_rows, bank_rows = prepare_all(normalize, query, bank)
    return bank_gradient(grad_lse.float(), query_rows, None, bank_rows, bank, lse, temp, temp, normalize)
