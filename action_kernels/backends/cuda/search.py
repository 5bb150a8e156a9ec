"""One selection from start to end: the first pass's maxima, limits, verdicts, and what the buffer has to redo."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..gpu import product_dtype, tf32_allowed
from ..thresholds import AS_THEY_ARE, Placement, capacity, error
from .buffered import buffered
from .library import processors
from .plan import TILE, plan, sharers, tiles, tiles_of_group
from .rows import Lengths, Rows
from .selection import empty_selection, put_in_order
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
        self.k, self.features = k, query.shape[2]
        self._shape, self._device = query.shape[:2], query.device
        self.query_labels = self.bank_labels = None
        if query_labels is not None and bank_labels is not None:
            self.query_labels, self.bank_labels = query_labels.contiguous(), bank_labels.contiguous()
        lanes = sharers(product_dtype(query, bank, query if teacher is None else teacher), tf32_allowed())
        self.tiles_of_group = tiles_of_group(device, groups * tiles(queries), rows, k, lanes)
        self.placement = Placement.of(rows, TILE * self.tiles_of_group) if self.by_limits else AS_THEY_ARE
        self._planned = plan(device, groups, queries, rows, k)
        self.floors: Tensor | None = None  # what the buffer's splits tell each other, set with the rows
        if self._planned.num_splits > 1:
            shape = (*self._shape, self._planned.num_splits)
            self.floors = torch.empty(shape, dtype=torch.int32, device=self._device)
        self.arrived = self.lengths = None  # set with the rows: blocks that have come to an end, and how long rows are
        if self.by_limits:
            self.arrived = torch.empty((groups, tiles(queries)), dtype=torch.int32, device=self._device)
            self.lengths = None if normalize else Lengths.empty(groups, queries, rows, self._device)
        self.limits: Tensor | None = None  # [G, N] what a similarity has to reach
        self.found: Tensor | None = None  # [G, N] keys of a query, or -1: the buffer has to select
        self.words: Words | None = None  # of verdicts, and of the keys that the buffer puts in their place
        self.result = empty_selection(self._shape, k, self._device)  # similarities and rows, both [G, N, k]

    def prepared(self) -> dict[str, Any]:
        """What is prepared with the rows."""
        return {
            "placement": self.placement,
            "labels": self.bank_labels if self.by_limits else None,
            "floors": self.floors,
            "arrived": self.arrived,
            "lengths": self.lengths,
        }

    @property
    def by_limits(self) -> bool:
        """Whether the passes over the bank take part; otherwise the buffer does it all."""
        return self.tiles_of_group > 0

    def error(self, query: Rows) -> float:
        """Bound of a product's error, relative to the product of the rows' lengths."""
        # Where factors are rounded to tf32, they were when the rows were prepared: the collection has no others.
        return error(query.data.shape[2], rounded=False)

    def new_limits(self) -> tuple[Tensor, Tensor]:
        """Memory for limits, and for what is found."""
        self.limits = torch.empty(self._shape, dtype=torch.float32, device=self._device)
        self.found = torch.empty(self._shape, dtype=torch.int32, device=self._device)
        return self.limits, self.found

    def new_words(self, num_splits: int) -> Words:
        """Memory for the second pass's verdicts, which comes in so many splits of the bank."""
        assert self.limits is not None
        room = capacity(self.k, num_splits)
        line = max(num_splits * room, self._planned.keys)
        words = torch.empty((*self._shape, line), dtype=torch.int64, device=self._device)
        counts = torch.empty((num_splits, *self._shape), dtype=torch.int32, device=self._device)
        self.words = Words(self.limits, self.query_labels, words, counts, room)
        return self.words

    def finish(self, query: Rows, bank: Rows, tf32: bool) -> tuple[Tensor, Tensor]:
        """The result, once the verdicts have become one where they do; the buffer selects for all other queries."""
        keys = self.words and self.words.words
        if keys is None:
            keys = torch.empty((*self._shape, self._planned.keys), dtype=torch.int64, device=self._device)
        labels, redo = (self.query_labels, self.bank_labels), (self.arrived, *self.result, self.found)
        buffered(query, bank, tf32, self._planned, *labels, self.placement, self.floors, keys, *redo)
        if not self.by_limits:
            put_in_order(keys, *self.result)
        return self.result
