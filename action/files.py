"""Writing that an interruption cannot spoil: aside first, then renamed over the old file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Yields a path beside ``path`` to write to; it replaces ``path`` only if the block ends without an exception.

    The suffix is kept, since writers choose their format by it.
    """
    path = Path(path)
    aside = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
