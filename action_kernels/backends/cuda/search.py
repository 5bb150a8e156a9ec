"""One selection from start to end: the first pass's maxima, limits, verdicts, keys, and what the buffer has to redo."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gpu import product_dtype, tf32_allowed
from ..thresholds import AS_THEY_ARE, Placement, capacity, error, longest_products
from .buffered import buffered
from .collect import collect
from .library import processors
from .limits import limits_of
from .plan import TILE, plan, sharers, tiles, tiles_of_group
from .rows import Rows
from .selection import in_order
from .words import Words


class Search:
    """The selection of k bank rows for each query, as the kernels go along.

    Args:
        k: rows to select, at least 1.
        query: raw queries [G, N, D].
        bank: raw bank [G, M, D].
        query_labels: [G, N] int64, or None.
        bank_labels: [G, M] int64, or None.
        normalize: whether rows are brought to unit length.
        teacher: raw rows that take part in the products' dtype, if any.
    """

    def __init__(
        self,
        k: int,
        query: Tensor,
        bank: Tensor,
        query_labels: Tensor | None,
        bank_labels: Tensor | None,
        normalize: bool,
        teacher: Tensor | None = None,
    ) -> None:
        groups, queries, rows = *query.shape[:2], bank.shape[1]
        device = processors(query.device)
        self.k = k
        self.query_labels = self.bank_labels = None
        if query_labels is not None and bank_labels is not None:
            self.query_labels, self.bank_labels = query_labels.contiguous(), bank_labels.contiguous()
        lanes = sharers(product_dtype(query, bank, query if teacher is None else teacher), tf32_allowed())
        self.tiles_of_group = tiles_of_group(device, groups * tiles(queries), rows, k, lanes)
        self.placement = Placement.of(rows, TILE * self.tiles_of_group) if self.by_limits else AS_THEY_ARE
        self._planned = plan(device, groups, queries, rows, k)
        self.floors: Tensor | None = None  # what the buffer's splits tell each other, set with the rows
        if self._planned.num_splits > 1:
            shape = (groups, queries, self._planned.num_splits)
            self.floors = torch.empty(shape, dtype=torch.int32, device=query.device)
        self._lengths = longest_products(query, bank) if self.by_limits and not normalize else None
        self._limits: Tensor | None = None
        self._found: Tensor | None = None
        self._words: Words | None = None

    @property
    def by_limits(self) -> bool:
        """Whether the passes over the bank take part; otherwise the buffer does it all."""
        return self.tiles_of_group > 0

    def set_limits(self, query: Rows, maxima: Tensor) -> None:
        """From the first pass's maxima."""
        # Where factors are rounded to tf32, they were when the rows were prepared: the collection has no others.
        bound = error(query.data.shape[2], rounded=False)
        self._limits, self._found = limits_of(maxima, self.k, bound, self._lengths, self.query_labels)

    def words(self, num_splits: int) -> Words:
        """Memory for the second pass's verdicts, which comes in so many splits of the bank."""
        assert self._limits is not None
        groups, queries = self._limits.shape
        room = capacity(self.k, num_splits)
        line, device = max(num_splits * room, self._planned.keys), self._limits.device
        words = torch.empty((groups, queries, line), dtype=torch.int64, device=device)
        counts = torch.empty((num_splits, groups, queries), dtype=torch.int32, device=device)
        self._words = Words(self._limits, self.query_labels, words, counts, room)
        return self._words

    def result(self, query: Rows, bank: Rows, tf32: bool) -> tuple[Tensor, Tensor]:
        """Similarities and rows, both [G, N, k]."""
        keys = None
        if self._words is not None and self._found is not None:
            keys = collect(query, bank, tf32, self.placement, self._words, self._found)
        labels = self.query_labels, self.bank_labels
        keys = buffered(query, bank, tf32, self._planned, *labels, self.placement, keys, self._found, self.floors)
        return in_order(keys, self.k, self._planned.keys, self._found)
