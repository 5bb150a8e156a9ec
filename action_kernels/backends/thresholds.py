"""How good a bank row has to be, to be among a query's k best: a limit from the best rows of groups of the bank.

k groups have a row that reaches the k-th largest of the group maxima; so the k-th largest similarity does, whatever the
bank holds. A second pass takes every product that reaches it less twice the error bound, and few others do: with 4k
groups about 1.15 k rows where the bank is in random order. Infinite products, labels beyond float32's whole numbers,
more rows than a line of verdicts holds: such queries are flagged, and selected for by the buffer that takes anything.
Both GPU backends select like this; the CUDA backend has these numbers in ``csrc/cuda/search.cuh`` and ``limits.cuh``.

Error bound. Let B = sum of |q_d b_d| over the D features, at most |q| |b|. A tensor core adds the K products of a step
to the accumulator after aligning all of them to the largest, and cuts what lies below 2**-23 of it; so does the
rounding of its result: (K + 2) 2**-23 B a step, and D / K steps with K of 8 or more, that is at most 1.25 D 2**-23 B.
Sums of float32 without tensor cores err by less, D 2**-24 B. Products of 16-bit rows are exact; tf32 cuts each factor
to 11 bits, which errs by at most (2**-10 + 2**-10 + 2**-20) B. The scales of both rows, the similarity's own rounding
and that of the limit add some 2**-24 B each. Hence ERROR(D) = (D + 8) 2**-22, and 2**-9 more for tf32: no pass computes
a product that differs by more than that from what the collection makes of it. A row that is selected there is no worse
there than the worst of k rows that reach the threshold in the first pass; less twice the bound, it reaches the
threshold in the second.
"""

from __future__ import annotations

from typing import NamedTuple

LARGEST_K = 2048  # group maxima are searched in registers; a larger k takes the buffer
LARGEST_PRODUCT = 2.0**120  # from here on, products may leave float32's range: the query is flagged
UNDERFLOW = 2.0**-100  # more than all that may be lost below float32's range
LOWEST_LIMIT = -3.4e38  # above the lowest number, which stands for rows that are not eligible


class Placement(NamedTuple):
    """In which order the rows of a bank are kept, so that neighbours come into different groups.

    Rows that lie side by side in a bank are often alike: one image filled them, or they are sorted. Where a tile takes
    every ``tiles``-th row instead, the best rows of a query are spread over the tiles, and the best row of each tile
    says a lot about which rows are the best of all. Preparing a bank copies it anyway.

    Rows 0 to ``tiles * block`` are dealt out to the tiles in turn; those behind stay where they are.
    """

    tiles: int
    block: int  # rows of a tile

    @classmethod
    def of(cls, rows: int, block: int) -> Placement:
        """For tiles of ``block`` rows."""
        return cls(max(1, rows // block), block)


AS_THEY_ARE = Placement(1, 1)


def error(features: int, rounded: bool) -> float:
    """Bound of a product's error, relative to the product of the rows' lengths.

    Args:
        features: of a row.
        rounded: whether a pass rounds factors to tf32 which the collection takes as they are.
    """
    return (features + 8) * 2.0**-22 + (2.0**-9 + 2.0**-19 if rounded else 0.0)


def capacity(k: int, num_splits: int) -> int:
    """Words of verdicts for which a split has room in a query's line.

    Of a bank in random order 1.4 k rows at the most pass the limits, spread over the splits.
    """
    return 2 * k // num_splits + 32
