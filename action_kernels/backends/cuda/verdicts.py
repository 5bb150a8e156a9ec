"""The second pass over the bank where no gradient is wanted: which rows may be among a query's k best."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..gpu import splits
from .library import bind, processors
from .plan import TILE, tiles
from .rows import Rows
from .search import Search


class VerdictsParams(NamedTuple):
    """As ``csrc/cuda/verdicts.cu`` has them."""

    query: Tensor
    query_scale: Tensor
    bank: Tensor
    bank_scale: Tensor
    tf32: bool
    num_splits: int
    span: int
    limits: Tensor
    query_labels: Tensor | None
    bank_labels: Tensor | None
    capacity: int
    words: Tensor
    counts: Tensor


_verdicts = bind("verdicts", VerdictsParams)


def verdicts(query: Rows, bank: Rows, tf32: bool, search: Search) -> None:
    """Take the verdicts in a pass of their own."""
    groups, queries, _ = query.data.shape
    num_splits, span = splits(processors(query.data.device), groups * tiles(queries), bank.data.shape[1], TILE)
    words = search.new_words(num_splits)
    _verdicts(
        VerdictsParams(
            query=query.data,
            query_scale=query.scale,
            bank=bank.data,
            bank_scale=bank.scale,
            tf32=tf32,
            num_splits=num_splits,
            span=span,
            limits=words.limits,
            query_labels=words.query_labels,
            bank_labels=bank.labels,
            capacity=words.capacity,
            words=words.words,
            counts=words.counts,
        ),
        query.data,
    )
