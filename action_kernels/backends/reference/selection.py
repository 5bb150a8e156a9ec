"""The largest similarities of every row, and gradients of similarities that an index names."""

from __future__ import annotations

import torch
from torch import Tensor

from ...unit_rows import unit
from .rows import raw_gradient, without_nan


def largest(
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


def scatter(values: Tensor, index: Tensor, columns: int) -> Tensor:
    """values[..., n, j] added at [..., n, index[..., n, j]]; an index outside 0..columns-1 adds nothing."""
    spare = torch.where((index >= 0) & (index < columns), index, columns)  # a column to throw away
    return values.new_zeros((*index.shape[:-1], columns + 1), dtype=values.dtype).scatter_add(-1, spare, values)[
        ..., :columns
    ]


def query_gradient(weight: Tensor, query: Tensor, bank: Tensor, normalize: bool) -> Tensor:
    """Gradient in the raw queries of sum(weight * similarity)."""
    return raw_gradient(weight @ without_nan(unit(bank, normalize, weight.dtype)), query, normalize)


def bank_gradient(weight: Tensor, query: Tensor, bank: Tensor, normalize: bool) -> Tensor:
    """Gradient in the raw bank rows of sum(weight * similarity)."""
    return raw_gradient(weight.mT @ without_nan(unit(query, normalize, weight.dtype)), bank, normalize)
