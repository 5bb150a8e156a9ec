"""One selection from start to end: the first pass's maxima, limits, verdicts, keys, and what the buffer has to redo."""

from __future__ import annotations

import torch
from torch import Tensor

from ..thresholds import AS_THEY_ARE, Placement, capacity, error
from .buffered import Geometry, buffered
from .launch import float32_precision
from .order import in_order
from .rows import Rows
from .thresholds import groups_of_tile
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
        self.k, self.features = k, query.shape[2]
        self._shape, self._device = query.shape[:2], query.device
        self._buffer_tile = buffer_tile
        self._keys = Geometry(groups, queries, rows, k, buffer_tile, bank.device).keys
        self.query_labels = None if query_labels is None else query_labels.contiguous()
        self.bank_labels = None if bank_labels is None else bank_labels.contiguous()
        self.groups_of_tile = groups_of_tile(k, rows, tile.block_m)
        self.placement = AS_THEY_ARE
        self.limits: Tensor | None = None  # [G, N] what a product has to reach
        self.flags: Tensor | None = None  # [G, N] not 0 for queries that the buffer has to select for
        self.words: Words | None = None  # of verdicts, and then the keys in their place
        if self.by_limits:
            self.placement = Placement.of(rows, tile.block_m)
        self.measured = self.by_limits and not normalize  # whether the limits need the rows' largest elements

    @property
    def labels(self) -> tuple[Tensor, Tensor] | None:
        """Those that the passes over the bank have to compare."""
        if self.by_limits and self.query_labels is not None and self.bank_labels is not None:
            return self.query_labels, self.bank_labels
        return None

    @property
    def by_limits(self) -> bool:
        """Whether the passes over the bank take part; otherwise the buffer does it all."""
        return self.groups_of_tile > 0

    def error(self, query: Rows) -> float:
        """Bound of a product's error, relative to the product of the rows' lengths."""
        rounded = query.data.dtype == torch.float32 and float32_precision() == "tf32"
        return error(query.data.shape[2], rounded)

    def new_limits(self) -> tuple[Tensor, Tensor]:
        """Memory for limits and flags."""
        self.limits = torch.empty(self._shape, dtype=torch.float32, device=self._device)
        self.flags = torch.empty(self._shape, dtype=torch.int32, device=self._device)
        return self.limits, self.flags

    def new_words(self, num_splits: int, block_m: int) -> Words:
        """Memory for the second pass's verdicts, in so many splits of the bank and tiles of so many rows."""
        room = capacity(self.k, num_splits)
        line = max(num_splits * room, self._keys)
        words = torch.empty((*self._shape, line), dtype=torch.int64, device=self._device)
        counts = torch.empty((num_splits, *self._shape), dtype=torch.int32, device=self._device)
        self.words = Words(words, counts, line, room, num_splits, block_m)
        return self.words

    def result(self, query: Rows, bank: Rows) -> tuple[Tensor, Tensor]:
        """Similarities and rows, both [G, N, k], once verdicts have become keys."""
        keys = self.words and self.words.words
        labels = self.query_labels, self.bank_labels
        keys = buffered(query, bank, self._buffer_tile, self.k, *labels, self.placement, keys, self.flags)
        return in_order(keys, self.k)
