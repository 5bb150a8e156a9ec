"""Tiles that were measured to be the fastest on a GPU: ``tuned/<device name>.json``, by ``tools.tuning.tiles``.

A table has the device, the versions it was measured with, and under ``tiles`` a tile for each kernel, dtype and width,
such as ``"bank_pass bfloat16 128": {"block_n": 128, "block_m": 64, "warps": 8, "stages": 3}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..choice import file_of
from .launch import float32_precision, power_of_two

FOLDER = Path(__file__).parent / "tuned"
KERNELS = ("bank_pass", "selection", "student_grad", "bank_grad")
FIELDS = ("block_n", "block_m", "warps", "stages")

_on_trial: ContextVar[tuple[str, tuple[int, int, int, int]] | None] = ContextVar("tile_on_trial", default=None)


def device_name(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def path_of(name: str) -> Path:
    return FOLDER / file_of(name)


def key_of(kernel: str, features: int, dtype: torch.dtype) -> str:
    """Rows of up to a power of two of features split a tile."""
    kind = float32_precision() if dtype == torch.float32 else str(dtype).removeprefix("torch.")
    return f"{kernel} {kind} {max(16, power_of_two(features))}"


def tuned(kernel: str, features: int, dtype: torch.dtype, device: torch.device) -> tuple[int, int, int, int] | None:
    """(block_n, block_m, warps, stages), or None where nothing was measured.

    Raises:
        ValueError: the device's table is malformed.
    """
    key = key_of(kernel, features, dtype)
    trial = _on_trial.get()
    if trial is not None and trial[0] == key:
        return trial[1]
    name = device_name(device)
    return None if name is None else read(path_of(name)).get(key)


@contextmanager
def on_trial(key: str, tile: tuple[int, int, int, int]) -> Iterator[None]:
    """Inside the ``with`` block the table's entry ``key`` is ``tile``, on every device."""
    token = _on_trial.set((key, tile))
    try:
        yield
    finally:
        _on_trial.reset(token)


@cache
def read(path: Path) -> dict[str, tuple[int, int, int, int]]:
    """A table's tiles; none where there is no table."""
    if not path.is_file():
        return {}
    try:
        tiles = json.loads(path.read_text())["tiles"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no table of tiles ({type(error).__name__}: {error})") from error
    if not isinstance(tiles, dict):
        raise ValueError(f"{path}: tiles: must be a table, not {tiles!r}")
    return {key: _checked(path, key, tile) for key, tile in tiles.items()}


def _checked(path: Path, key: str, tile: Any) -> tuple[int, int, int, int]:
    if key.split(" ")[0] not in KERNELS:
        raise ValueError(f"{path}: {key!r}: the first word must be one of {', '.join(KERNELS)}")
    if not isinstance(tile, dict):
        raise ValueError(f"{path}: {key!r}: must have {', '.join(FIELDS)}, not {tile!r}")
    for field in FIELDS:
        value = tile.get(field)
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not isinstance(value, int) or not whole or (field != "stages" and value != power_of_two(value)):
            kind = "a positive whole number" if field == "stages" else "a power of two"
            raise ValueError(f"{path}: {key!r}: {field} must be {kind}, not {value!r}")
        if field.startswith("block") and value < 16:
            raise ValueError(f"{path}: {key!r}: {field} must be at least 16, not {value!r}")
    return tile["block_n"], tile["block_m"], tile["warps"], tile["stages"]
