"""One selection from start to end: the first pass's maxima, limits, verdicts, keys, and what the buffer has to redo."""

from __future__ import annotations

import torch
from torch import Tensor

from ..thresholds import AS_THEY_ARE, Placement, capacity, error, longest_products
from .buffered import Geometry, buffered
from .collect import collect, in_order
from .labels import narrow
from .launch import float32_precision
from .rows import Rows
from .thresholds import groups_of_tile, limits_of
from .tiles import Tile
from .words import Words


class Search:
    """The selection of k bank rows for each query, as the kernels go along.

    Args:
        k: rows to select.
        query: raw queries [G, N, D].
        bank: raw bank [G, M, D].
        query_labels: [G, N] int64, or None.
        bank_labels: [G, M] int64, or None.
        normalize: whether rows are brought to unit length.
        tile: of the first pass.
        buffer_tile: of the selection by a buffer.
    """

    def __init__(
        self,
        k: int,
        query: Tensor,
        bank: Tensor,
        query_labels: Tensor | None,
        bank_labels: Tensor | None,
        normalize: bool,
        tile: Tile,
        buffer_tile: Tile,
    ) -> None:
        groups, queries, rows = *query.shape[:2], bank.shape[1]
        self.k = k
        self._buffer_tile = buffer_tile
        self._keys = Geometry(groups, queries, rows, k, buffer_tile, bank.device).keys
        self._query_labels = None if query_labels is None else query_labels.contiguous()
        self._bank_labels = None if bank_labels is None else bank_labels.contiguous()
        self.groups_of_tile = groups_of_tile(k, rows, tile.block_m)
        self.placement = AS_THEY_ARE
        self.query_labels: Tensor | None = None  # as the passes compare them
        self.bank_labels: Tensor | None = None  # the same, placed like the bank
        self._wide: Tensor | None = None
        self._lengths: Tensor | None = None
        self.limits: Tensor | None = None
        self._flags: Tensor | None = None
        self._words: Words | None = None
        if self.by_limits:
            self.placement = Placement.of(rows, tile.block_m)
            if self._query_labels is not None and self._bank_labels is not None:
                labels = self._query_labels, self._bank_labels
                self.query_labels, self.bank_labels, self._wide = narrow(*labels, self.placement)
            if not normalize:
                self._lengths = longest_products(query, bank)

    @property
    def by_limits(self) -> bool:
        """Whether the passes over the bank take part; otherwise the buffer does it all."""
        return self.groups_of_tile > 0

    def set_limits(self, query: Rows, maxima: Tensor) -> None:
        """From the first pass's maxima."""
        rounded = query.data.dtype == torch.float32 and float32_precision() == "tf32"
        bound = error(query.data.shape[2], rounded)
        self.limits, self._flags = limits_of(maxima, query, self.k, bound, self._lengths, self._wide)

    def words(self, num_splits: int, block_m: int) -> Words:
        """Memory for the second pass's verdicts, in so many splits of the bank and tiles of so many rows."""
        assert self.limits is not None
        groups, queries = self.limits.shape
        room = capacity(self.k, num_splits)
        line = max(num_splits * room, self._keys)
        words = torch.empty((groups, queries, line), dtype=torch.int64, device=self.limits.device)
        counts = torch.empty((num_splits, groups, queries), dtype=torch.int32, device=self.limits.device)
        self._words = Words(words, counts, line, room, num_splits, block_m)
        return self._words

    def result(self, query: Rows, bank: Rows) -> tuple[Tensor, Tensor]:
        """Similarities and rows, both [G, N, k]."""
        keys = None
        if self._words is not None and self._flags is not None:
            keys = collect(query, bank, self.placement, self._words, self._flags)
        labels = self._query_labels, self._bank_labels
        keys = buffered(query, bank, self._buffer_tile, self.k, *labels, self.placement, keys, self._flags)
        return in_order(keys, self.k)
