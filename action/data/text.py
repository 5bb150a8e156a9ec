"""Small text files that come with a data set, whatever editor wrote them."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any


def read_text(path: Path) -> str:
    """Text in UTF-8, or in UTF-16 with a byte-order mark; the mark is left out, and lines end in a line feed.

    Bytes that are no text are replaced, so that a comment in another encoding spoils nothing.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return "\n".join(content.decode("utf-16" if wide else "utf-8-sig", errors="replace").splitlines())


def read_json(path: Path) -> Any:
    """The content of a JSON file in any encoding of Unicode, with or without a byte-order mark.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error
