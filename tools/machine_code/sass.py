"""The loop over the rows in a streaming kernel's machine code, as nvdisasm prints it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

PRODUCT = r"(?<!\.)\b\w*MMA\b|\bFFMA2?\b"  # FFMA2 is two of them; HFMA2.MMA is a move
MADE_OF_IT = r"MUFU\.EX2|\bFMNMX|\bFSETP"  # exponentials, maxima, verdicts
FUNCTION = r"\bCALL\b[^`]*`\((?!\.L_)"  # some jumps to a label are calls, too
_INSTRUCTION = re.compile(r"^\s*(?:/\*[0-9a-f]+\*/)?\s*(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_]*(?:\.\w+)*)(.*)")


@dataclass(frozen=True)
class Instruction:
    """One line of machine code."""

    name: str  # with its modifiers
    operands: str
    never: bool  # its predicate is false: it takes an issue slot and does nothing

    @property
    def opcode(self) -> str:
        return self.name.partition(".")[0]


def parse(line: str) -> Instruction | None:
    """An instruction; None for a label, a directive or a comment."""
    if line.strip().startswith((".", "//")) or (match := _INSTRUCTION.match(line)) is None:
        return None
    predicate, name, operands = match.groups()
    return Instruction(name, operands, predicate in ("!PT", "!UPT"))


def spilled(sass: list[str], lines: Iterable[int]) -> int:
    """Instructions among the lines that touch spilled registers."""
    return sum(re.search(r"\b(STL|LDL)\b", sass[i]) is not None for i in lines)


class Loop:
    """The loop over the rows.

    It is the smallest loop with both a product and what is made of it: exponentials, maxima, verdicts, or a call of the
    selection.
    ``branch`` are its lines that are jumped over where a tile has no candidate for the selection: ``clear`` those that
    are jumped over also where the buffer has room, ``append`` the others. ``inner`` are the loops inside of it, over
    the features.

    Raises:
        ValueError: there is none.
    """

    def __init__(self, sass: list[str]) -> None:
        self._sass = sass
        labels = {line.strip()[:-1]: i for i, line in enumerate(sass) if re.match(r"\.L_\w+:", line.strip())}
        jumps = [
            (i, labels.get(m[1], i)) for i, line in enumerate(sass) if (m := re.search(r"\bBRA.*`\((\.L_\w+)\)", line))
        ]
        backward = [range(target, i + 1) for i, target in jumps if target < i]
        # What begins inside a loop and ends behind it is the way back from code that the assembler has put there.
        loops = [x for x in backward if not any(y.start < x.start < y.stop < x.stop for y in backward)]
        complete = [x for x in loops if self._has(PRODUCT, x) and (self._has(MADE_OF_IT, x) or self._has(FUNCTION, x))]
        if not complete:
            raise ValueError("there is no loop over the rows")
        self.lines = min(complete, key=len)
        self.inner = sorted(
            (x for x in loops if x.start > self.lines.start and x.stop <= self.lines.stop and self._has(PRODUCT, x)),
            key=lambda x: x.start,
        )
        skips = [
            range(i + 1, target)
            for i, target in jumps
            if i in self.lines and i < target < self.lines.stop and self._has(FUNCTION, range(i, target))
        ]
        self.branch = {i for x in skips for i in x}
        self.clear = set(min(skips, key=len)) if len({x.start for x in skips}) > 1 else set()
        self.append = self.branch - self.clear

    def _has(self, pattern: str, lines: range) -> bool:
        return any(re.search(pattern, self._sass[i]) for i in lines)

    def spills(self) -> tuple[int, int]:
        """Instructions that touch spilled registers: on the way through the loop, in the selection's branch."""
        branch = self.branch & set(self.lines)
        return spilled(self._sass, set(self.lines) - branch), spilled(self._sass, branch)

    def instructions(self, lines: Iterable[int]) -> Counter[Instruction]:
        return Counter(x for i in sorted(lines) if (x := parse(self._sass[i])) is not None)

    def parts(self) -> tuple[Counter[Instruction], Counter[Instruction], Counter[Instruction]]:
        """Instructions once per tile, once per feature block of a tile, once per tile with a candidate."""
        inner = {i for x in self.inner for i in x}
        once = set(self.lines) - self.branch - inner
        return self.instructions(once), self.instructions(inner), self.instructions(self.append)
