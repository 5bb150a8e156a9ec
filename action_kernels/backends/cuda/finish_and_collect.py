"""After the second pass, one launch: partial sums become the gradient in the raw rows, verdicts a selection."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..gpu import Partial
from .library import bind
from .rows import Rows, empty_gradient
from .search import Search


class FinishAndCollectParams(NamedTuple):
    """As ``csrc/cuda/finish_and_collect.cu`` has them."""

    partial: Tensor | None
    factor: Tensor | None
    constant: float
    raw: Tensor | None
    normalize: bool
    grad: Tensor | None
    query: Tensor | None
    query_scale: Tensor | None
    bank: Tensor | None
    bank_scale: Tensor | None
    tf32: bool
    place_tiles: int
    place_block: int
    capacity: int
    counts: Tensor | None
    words: Tensor | None
    found: Tensor | None
    similarity: Tensor | None
    index: Tensor | None  # type: ignore[assignment]  # hides tuple.index


_finish_and_collect = bind("finish_and_collect", FinishAndCollectParams)


def finish_and_collect(
    partial: Partial | None,
    raw: Tensor,
    normalize: bool,
    query: Rows | None = None,
    bank: Rows | None = None,
    tf32: bool = False,
    search: Search | None = None,
) -> Tensor:
    """The gradient [G, rows, D] in raw rows, [0] where there is none; the words of a ``search`` become its result.

    Args:
        partial: the gradient in parts.
        raw: [G, rows, D] as they were before they were prepared.
        normalize: whether rows were brought to unit length.
        query: the queries of the search.
        bank: the bank.
        tf32: whether float32 rows have been rounded to it.
        search: whose verdicts were taken; what it has found becomes -1 where some did not fit.
    """
    grad = empty_gradient(raw, partial is not None)
    words = search.words if search else None
    if partial is None and words is None:
        return grad
    _finish_and_collect(
        FinishAndCollectParams(
            partial=partial and partial.sums,
            factor=partial and partial.factor,
            constant=partial.constant if partial else 0.0,
            raw=partial and raw,
            normalize=normalize,
            grad=partial and grad,
            query=query.data if query and words else None,
            query_scale=query.scale if query and words else None,
            bank=bank.data if bank and words else None,
            bank_scale=bank.scale if bank and words else None,
            tf32=tf32,
            place_tiles=search.placement.tiles if search else 1,
            place_block=search.placement.block if search else 1,
            capacity=words.capacity if words else 0,
            counts=words and words.counts,
            words=words and words.words,
            found=search.found if search and words else None,
            similarity=search.result[0] if search and words else None,
            index=search.result[1] if search and words else None,
        ),
        raw,
    )
    return grad
