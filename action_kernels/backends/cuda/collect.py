"""From verdicts to keys: every row that may be among a query's k best gets its similarity, in one defined rounding."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..thresholds import Placement
from .library import bind
from .rows import Rows
from .words import Words


class CollectParams(NamedTuple):
    """As ``csrc/cuda/collect.cu`` has them."""

    query: Tensor
    query_scale: Tensor
    bank: Tensor
    bank_scale: Tensor
    tf32: bool
    place_tiles: int
    place_block: int
    capacity: int
    counts: Tensor
    words: Tensor
    found: Tensor


_collect = bind("collect", CollectParams)


def collect(query: Rows, bank: Rows, tf32: bool, placement: Placement, words: Words, found: Tensor) -> Tensor:
    """Keys [G, N, line] in place of the words; ``found`` [G, N] becomes their number, or -1 where some did not fit."""
    _collect(
        CollectParams(
            query=query.data,
            query_scale=query.scale,
            bank=bank.data,
            bank_scale=bank.scale,
            tf32=tf32,
            place_tiles=placement.tiles,
            place_block=placement.block,
            capacity=words.capacity,
            counts=words.counts,
            words=words.words,
            found=found,
        ),
        query.data,
    )
    return words.words
