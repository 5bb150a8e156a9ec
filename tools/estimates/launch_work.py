"""What a streaming kernel's launch does: tiles, flop, exponentials and bytes, by its grid and its arguments."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..machine_code.launches import Launch

WRITTEN = {  # by each kernel
    "bank_pass": ("sums", "maxima"),
    "student_grad": ("partial", "words"),
    "bank_grad": ("partial",),
    "verdicts": ("words",),
    "buffered": ("keys",),
}


@dataclass(frozen=True)
class Work:
    """A launch's work.

    Attributes:
        works: walks over a split of the streamed side by a block of the other; all alike.
        tiles: of a walk.
        pair_flop: of a pair of rows, in one walk.
        parts: walks that take the same pair, each for other columns of a gradient.
    """

    works: int
    tiles: int
    parts: int
    tile_pairs: int
    pairs: int
    pair_flop: int
    pair_exponentials: int
    compulsory: int  # bytes of memory, each array once
    streamed: int  # bytes of the streamed side's arrays for one group
    reread: int  # bytes of the streamed side, once for each block that walks over it
    tile_bytes: int  # that a tile loads

    @property
    def flop(self) -> int:
        return self.pairs * self.parts * self.pair_flop

    @property
    def exponentials(self) -> int:
        return self.pairs * self.parts * self.pair_exponentials

    def traffic(self, l2_size: int) -> int:
        """Bytes of memory: blocks that walk at the same time share rows where a group's streamed side fits the L2."""
        if self.streamed <= l2_size:
            return self.compulsory
        return self.most_traffic

    @property
    def most_traffic(self) -> int:
        """Bytes of memory if the L2 never had a row that another block has read."""
        return self.compulsory + self.reread


def work(launch: Launch) -> Work:
    """The work of a recorded launch."""
    return _streaming(launch) if launch.streams else _gathering(launch)


def _streaming(launch: Launch) -> Work:
    bank_grad, gradient = launch.name == "bank_grad", launch.name in ("student_grad", "bank_grad")
    query = launch["query" if launch.name == "buffered" else "student"]
    padded, size, groups = launch["FEATURES"], query.element_size(), query.shape[0]
    out = launch["OUT"] if gradient else padded
    sides = launch["SIDES"] if launch.name == "bank_pass" else 1 + launch["PAIR"] if gradient else 0
    both = max(1, sides)  # student and teacher, or one
    queries, rows = launch["queries"], launch["rows"]
    n, m = launch["BLOCK_N"], launch["BLOCK_M"]
    step = n if bank_grad else m
    works = launch["works"] if launch.name == "buffered" else launch.grid[0]
    terms = 1 if query.dtype == torch.float32 else 2  # of a gradient's weight
    if launch.name == "student_grad":
        terms = min(terms, launch["TERMS"])
    products = both * padded + (both * terms * out if bank_grad else terms * out if gradient else 0)

    line = padded * size + 4  # with its scale
    labels = 0
    if not bank_grad and launch["LABELLED"]:
        labels = launch["bank_labels"].element_size()
    query_side, bank_side = both * queries * line + labels * queries, rows * (line + labels)
    streamed = query_side if bank_grad else bank_side
    written = [launch[name] for name in WRITTEN[launch.name]]
    blocks = works // launch["num_splits"] // groups  # of one group

    kept = launch["WIDTH"] == padded
    tile_bytes = step * padded * size * (2 if bank_grad else 1)
    if not kept:  # both sides are loaded again, and the columns of the gradient
        tile_bytes = size * padded * (2 * (n + m) if bank_grad else both * n + m)
        tile_bytes += size * out * (2 * n if bank_grad else m) if gradient else 0
    return Work(
        works=works,
        tiles=-(-launch["span"] // step),
        parts=padded // out,
        tile_pairs=n * m,
        pairs=groups * queries * rows,
        pair_flop=2 * products,
        pair_exponentials=sides,
        compulsory=groups * (query_side + bank_side) + sum(x.nbytes for x in written if x is not None),
        streamed=streamed,
        reread=groups * streamed * (blocks - 1),
        tile_bytes=tile_bytes,
    )


def _gathering(launch: Launch) -> Work:
    """Of InfoNCE over indexed rows: each is brought to unit length, compared and, for a gradient, added with a weight.

    Where the bank does not fit the L2, every pair fetches its row from memory.
    """
    query, bank, k = launch["query"], launch["bank"], launch["k"]
    groups, queries, features = query.shape
    gradient = launch.name == "info_nce_grad"
    pairs, line = groups * queries * k, features * query.element_size()
    results = [launch[name] for name in ("query_grad", "positive_grad", "weights")] if gradient else []
    written = sum(x.nbytes for x in results if x is not None)
    return Work(
        works=launch.grid[0],
        tiles=-(-k // launch["BLOCK_K"]),
        parts=1,
        tile_pairs=launch["BLOCK_Q"] * launch["BLOCK_K"],
        pairs=pairs,
        pair_flop=2 * features * (3 if gradient else 2),
        pair_exponentials=1,
        compulsory=bank.nbytes + 2 * query.nbytes + 8 * pairs + groups * queries * (4 + 8) + written,
        streamed=bank.nbytes // groups,
        reread=pairs * line - bank.nbytes,
        tile_bytes=launch["BLOCK_Q"] * launch["BLOCK_K"] * launch["BLOCK_D"] * query.element_size(),
    )


def tiles_with_candidates(launch: Launch, tiles: int) -> float:
    """Fraction of a walk's tiles in which a row is among the k best so far of some query, on average.

    Rows come in random order, so that row j is among the k best of the first j with probability k / j; the threshold is
    taken as current, while the kernel's lags behind: the true fraction is no smaller.
    """
    if launch.name != "buffered":
        return 0.0
    k, pairs, step = launch["k"], launch["BLOCK_N"] * launch["BLOCK_M"], launch["BLOCK_M"]
    none = (max(0.0, 1 - k / max(1, i * step)) ** pairs for i in range(tiles))
    return 1 - sum(none) / tiles
