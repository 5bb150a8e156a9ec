"""A file of arrays that are read slice by slice, so that memory holds what is looked at and not what there is.

The slices come one after the other, then JSON: what the writer wants to know again, and of every slice its place,
length and checksum; then the JSON's own length and checksum. Images are stored as they are: float16 with noise shrinks
little and unpacks slowly. Labels are packed (zlib), to a fiftieth.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from action.data.unpacking import library
from action.files import write_aside

_END = struct.Struct("<8sQI")
_MAGIC = b"slices01"
_LEVEL = 1
"""Of packing: higher ones save little and take long."""


class Damaged(Exception):
    """A file is not as it was written."""


def write_slices(path: Path, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file, aside and then renamed; after a power cut it may be found damaged, and is written anew.

    Args:
        path: of the file.
        content: for JSON.
        arrays: by name, each [Z, ...]; those of bytes are packed.
    """
    described: dict[str, Any] = {}
    with write_aside(path, flushed=False) as aside, aside.open("wb") as file:
        for name, array in arrays.items():
            packed = array.dtype == np.uint8
            slices = [np.ascontiguousarray(slice_).data.cast("B") for slice_ in array]
            if packed:
                slices = [memoryview(library.compress(plain, _LEVEL)) for plain in slices]
            lengths = [len(data) for data in slices]
            starts = itertools.accumulate(lengths, initial=file.tell())
            places = list(zip(starts, lengths, map(library.crc32, slices), strict=False))
            if packed or not array.flags.c_contiguous:
                file.writelines(slices)
            else:
                file.write(array.data)  # at once: each slice by itself would be a call of the system
            described[name] = {
                "dtype": array.dtype.str,
                "shape": array.shape,
                "packed": packed,
                "places": places,
            }
        text = json.dumps({"content": content, "arrays": described}).encode()
        file.write(text)
        file.write(_END.pack(_MAGIC, len(text), library.crc32(text)))


class SliceFile:
    """A file that ``write_slices`` wrote. It is opened for each slice: a data set has more files than may stay open.

    Args:
        path: of the file.
        repair: writes it anew, when it is found damaged or missing later.

    Attributes:
        content: as it was written.

    Raises:
        Damaged: it is not whole, or another file.
        OSError: it is not there, or cannot be read.
    """

    def __init__(self, path: Path, repair: Callable[[], object] | None = None) -> None:
        self._path, self._repair = path, repair
        self._open()

    def array(self, name: str) -> StoredArray | None:
        """The array of that name, ``None`` where there is none."""
        return StoredArray(self, name, self._arrays[name]) if name in self._arrays else None

    def read(self, name: str, z: int) -> np.ndarray:
        """A slice of an array. A damaged file is written anew, once.

        Raises:
            Damaged, OSError: it cannot be read, and not be repaired either.
        """
        try:
            return self._read(name, z)
        except (Damaged, OSError):
            if self._repair is None:
                raise
        self._repair()
        self._open()
        return self._read(name, z)

    def _open(self) -> None:
        with self._path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _END.size))
            end = file.read()
            magic, length, checksum = _END.unpack(end) if len(end) == _END.size else (b"", 0, 0)
            if magic != _MAGIC or length + _END.size > size:
                raise Damaged(f"{self._path} has no end")
            file.seek(size - _END.size - length)
            text = file.read(length)
        if library.crc32(text) != checksum:
            raise Damaged(f"{self._path}: what it holds is not listed")
        listed = json.loads(text)
        self.content: dict[str, Any] = listed["content"]
        self._arrays: dict[str, dict[str, Any]] = listed["arrays"]
        for array in self._arrays.values():
            array["places"] = np.array(array["places"], np.int64)  # a tenth of the memory of lists

    def _read(self, name: str, z: int) -> np.ndarray:
        listed = self._arrays[name]
        place, length, checksum = (int(number) for number in listed["places"][z])
        with self._path.open("rb", buffering=0) as file:
            file.seek(place)
            data = bytearray(length)
            count = file.readinto(data)
        if count != length or library.crc32(data) != checksum:
            raise Damaged(f"{self._path}: slice {z} of {name}")
        plain = bytearray(library.decompress(data)) if listed["packed"] else data  # may be written to, as any array
        return np.frombuffer(plain, listed["dtype"]).reshape(listed["shape"][1:])


class StoredArray:
    """An array [Z, ...] in a ``SliceFile``, of which an index reads a slice; ``np.asarray`` reads all.

    Attributes:
        shape, dtype: as NumPy's.
    """

    def __init__(self, file: SliceFile, name: str, listed: Mapping[str, Any]) -> None:
        self._file, self._name = file, name
        self.shape: tuple[int, ...] = tuple(listed["shape"])
        self.dtype = np.dtype(listed["dtype"])

    @property
    def nbytes(self) -> int:
        """Bytes of all slices in memory."""
        return math.prod(self.shape) * int(self.dtype.itemsize)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, place: SupportsIndex | slice) -> np.ndarray:
        if isinstance(place, slice):
            return self._joined(range(*place.indices(len(self))))
        return self._file.read(self._name, range(len(self))[operator.index(place)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self._joined(range(len(self)))
        return array if dtype is None else array.astype(dtype, copy=False)

    def _joined(self, places: range) -> np.ndarray:
        whole = np.empty((len(places), *self.shape[1:]), self.dtype)
        for slice_, place in zip(whole, places, strict=True):
            slice_[...] = self._file.read(self._name, place)
        return whole


Voxels = np.ndarray | StoredArray
"""An array in memory, or one of which an index reads a slice."""
