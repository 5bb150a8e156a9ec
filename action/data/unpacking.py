"""Unpacking gzip files: by ISA-L (extra ``fast``) where it is installed, in half the time, otherwise by zlib."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

library: Any = import_module("isal.isal_zlib" if find_spec("isal") else "zlib")
"""The library: its ``decompressobj`` is zlib's."""
PIECE = 2**16
"""Bytes that are read, and of each answer: they stay in the processor's cache, and a bomb fills no memory."""
_GZIP = 31
"""``wbits`` of streams in gzip's format, whose checksums are compared."""


def unpack(path: Path, size: int) -> np.ndarray:
    """The first ``size`` bytes of what a gzip file holds, uint8. It is unpacked to its end, where its checksum is.

    Raises:
        EOFError: the file ends too early, or holds less.
        OSError, zlib.error, isal_zlib.error: it cannot be read, or is damaged.
    """
    content = np.empty(size, np.uint8)
    end = 0
    for piece in pieces(path):
        wanted = np.frombuffer(piece, np.uint8)[: size - end]
        content[end : end + wanted.size] = wanted  # while other threads go on, as they would not for a bytearray
        end += wanted.size
    if end < size:
        raise EOFError(f"it holds {end} bytes where its header claims {size}")
    return content


def beginning(packed: bytes, most: int) -> bytes:
    """What the first bytes of a gzip file hold, of its first member, at ``most`` so many bytes.

    Raises:
        zlib.error, isal_zlib.error: they are damaged.
    """
    plain: bytes = library.decompressobj(_GZIP).decompress(packed, most)
    return plain


def pieces(path: Path) -> Iterator[bytes]:
    """What a gzip file holds, also in several members with zeros after them, in pieces of at most ``PIECE`` bytes.

    Raises:
        EOFError: the file ends too early.
        OSError, zlib.error, isal_zlib.error: it cannot be read, or is damaged.
    """
    with path.open("rb") as file:
        packed = file.read(PIECE)
        while packed:
            member = library.decompressobj(_GZIP)
            while not member.eof:
                packed = packed or file.read(PIECE)
                plain = member.decompress(packed, PIECE)
                if not (packed or plain or member.eof):
                    raise EOFError("it ends before its end-of-stream marker")
                yield plain
                packed = member.unconsumed_tail
            packed = member.unused_data
            while not (packed := packed.lstrip(b"\0")) and (more := file.read(PIECE)):
                packed = more
