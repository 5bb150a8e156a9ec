"""How far a command has come: a bar on a terminal, a plain line every so often in a file, as jobs and CI have it."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

from action.ranks import speaks

EVERY = 30.0
"""Seconds between two lines."""

Item = TypeVar("Item")


def track(
    items: Iterable[Item],
    desc: str,
    unit: str = "it",
    *,
    initial: int = 0,
    total: int | None = None,
    leave: bool = True,
    disable: bool = False,
) -> tqdm[Item]:
    """``items``, and on standard error how many of them are done.

    Args:
        items: to go through.
        desc: what is done.
        unit: what an item is.
        initial: how many were done before.
        total: how many there are; none: the length of ``items``.
        leave: whether the end is shown, too.
        disable: show nothing.
    """
    disable = disable or not speaks()
    look: dict[str, Any] = {"dynamic_ncols": True}
    if not sys.stderr.isatty():
        look = {
            "file": _Lines(),
            "mininterval": EVERY,
            "miniters": 1,  # every item looks at the clock
            "delay": 0 if leave else EVERY,
            "bar_format": "{desc}: {n_fmt} of {total_fmt}, {elapsed} elapsed, {remaining} left{postfix}",
        }
    return tqdm(items, desc, total, leave, unit=unit, initial=initial, disable=disable, **look)


class _Lines(io.TextIOBase):
    """Standard error, where what would be drawn over a line becomes a line of its own."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> int:
        line = text.strip()
        if line not in ("", self._last):  # the end is drawn once more, with an empty line behind
            print(line, file=sys.stderr, flush=True)
            self._last = line
        return len(text)
