"""What a streaming kernel of the CUDA library executes for a tile, by its machine code, against budgets.

Of all ways through the loop over the tiles this is the one with all of the work, and, among those, the shortest: that
of a whole tile. Work are copies, products, exponentials, maxima and, for verdicts, that words of them are stored, as a
warp does for nearly every tile. Loops inside of it run over chunks of 128 bytes a row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .sass import PRODUCT, parse

WORK = r"\w*HMMA\.|MUFU\.EX2|LDGSTS|FMNMX"
PAIRS = 64 * 64 / 128  # of a tile, for a thread
BUDGETS = {
    "bank_pass<Half, 2, true>": 39.0,
    "bank_pass<Half, 2, true>, labels": 41.0,
    "bank_pass<Half, 2, false>": 37.0,
    "bank_pass<Half, 1, false>": 19.0,
    "bank_pass<Half, 0, true>": 15.0,
    "bank_pass<Half, 0, true>, labels": 17.5,
    "student_grad<Half, true, true, 1>": 36.0,
    "student_grad<Half, true, true, 1>, labels": 38.5,
    "student_grad<Half, true, false, 1>": 31.0,
    "student_grad<Half, false, false, 1>": 23.0,
    "bank_grad<Half, true>": 62.5,
    "bank_grad<Half, false>": 31.0,
    "verdicts<Half>": 18.0,
    "verdicts<Half>, labels": 20.5,
}
"""Instructions for a pair of rows with D = 128 in 16 bits, a little above what each kernel needs."""
LABELS = "LDS"  # those of a bank's rows are read one by one
STORES = "STG"  # of words
_PLACE = re.compile(r"\s*/\*([0-9a-f]+)\*/")
_JUMP = re.compile(r"\bBRA\b[^;]*\b(0x[0-9a-f]+)")
_ALWAYS = re.compile(r"\*/\s+(?:BRA\s+0x[0-9a-f]+\s*|(?:EXIT|RET\.)[^;]*);")


@dataclass(frozen=True)
class Way:
    """Instructions on a way, and how many of them are work."""

    work: int = 0
    length: int = 0

    def __add__(self, other: Way) -> Way:
        return Way(self.work + other.work, self.length + other.length)

    def times(self, count: int) -> Way:
        return Way(self.work * count, self.length * count)

    @property
    def rank(self) -> tuple[int, int]:
        return self.work, -self.length


class Tiles:
    """The loop over the tiles, as cuobjdump prints it: the smallest with a barrier and products.

    Args:
        sass: a kernel's instructions.
        besides: a pattern of instructions that are work in this kernel, too.
    """

    def __init__(self, sass: Sequence[str], besides: str | None = None) -> None:
        self._sass, self._work = sass, re.compile(f"{WORK}|{besides}" if besides else WORK)
        place = {int(found[1], 16): i for i, line in enumerate(sass) if (found := _PLACE.match(line))}
        self._target = {i: place[int(found[1], 16)] for i, line in enumerate(sass) if (found := _JUMP.search(line))}
        ends: dict[int, int] = {}
        for i, target in self._target.items():
            if target < i:
                ends[target] = max(i, ends.get(target, 0))
        self._loops = [range(start, end + 1) for start, end in ends.items()]
        complete = [x for x in self._loops if self._has(r"\bBAR\.", x) and self._has(PRODUCT, x)]
        self.lines = min(complete, key=len)

    def executed(self, chunks: int) -> int:
        """Instructions of a thread for a tile of rows of so many chunks."""
        return self._way(self.lines, chunks).length

    def _way(self, loop: range, chunks: int) -> Way:
        inner = {x.start: x for x in self._loops if x.start > loop.start and x.stop < loop.stop}
        best: dict[int, Way] = {}  # from an instruction to the loop's end
        for i in reversed(loop):
            if i in inner:
                here, behind = self._way(inner[i], chunks).times(chunks), self._exits(inner[i])
            else:
                instruction = parse(self._sass[i])
                here, behind = Way(int(bool(instruction and self._work.match(instruction.name))), 1), self._next(i)
            ways = [here + best[j] for j in behind if j > i and j in best] + [here] * (i == loop[-1])
            if ways:
                best[i] = max(ways, key=lambda way: way.rank)
        return best[loop.start]

    def _exits(self, loop: range) -> set[int]:
        return {j for i in loop for j in self._next(i) if j >= loop.stop}

    def _next(self, i: int) -> list[int]:
        jump = [self._target[i]] if i in self._target else []
        return jump if _ALWAYS.search(self._sass[i]) else [*jump, i + 1]

    def _has(self, pattern: str, lines: range) -> bool:
        return any(re.search(pattern, self._sass[i]) for i in lines)


def for_a_pair(name: str, sass: Sequence[str]) -> dict[str, float]:
    """Instructions for a pair of rows with D = 128 of a kernel that has budgets, by their names."""
    stores = STORES if name.startswith("verdicts") or "true, true" in name else None
    besides = {name: stores, f"{name}, labels": LABELS}
    return {title: Tiles(sass, work).executed(chunks=2) / PAIRS for title, work in besides.items() if title in BUDGETS}
