"""Notes for the user about a file that can be read: warnings, or values where several files are read at once.

Python's machinery of warnings belongs to the whole process: what one thread has recorded may be another's. So a thread
keeps the notes of its own file, and whoever started it says them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_kept: ContextVar[list[str] | None] = ContextVar("notes", default=None)


def note(text: str) -> None:
    """Tell the user: kept by the innermost ``keeping`` of this thread, or a warning."""
    kept = _kept.get()
    if kept is None:
        warnings.warn(text, stacklevel=3)
    else:
        kept.append(text)


def tell(texts: Iterable[str]) -> None:
    """``note`` for each of the texts."""
    for text in texts:
        note(text)


@contextmanager
def keeping() -> Iterator[list[str]]:
    """Yield the list that gets what this thread notes within the block."""
    kept: list[str] = []
    token = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(token)
