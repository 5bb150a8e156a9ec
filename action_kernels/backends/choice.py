"""Which backend was measured to be the faster on a GPU: ``measured/<device name>.json``.

``python -m tools.tuning.backends`` writes it. A table has the device, the versions it was measured with, and under
``backends`` what was measured of each operator and dtype, such as ``"hard_negatives bfloat16": [{"work": 536870912,
"order": ["cuda", "triton"]}, ...]``: the fastest first, where a product of all queries with all bank rows takes
``work`` multiply-adds. A call goes by the measurement whose work is nearest to its own, by their ratio: small calls are
a matter of launching, large ones of arithmetic. ``relation_negatives``, which takes no floating rows, is listed without
a dtype.
"""

from __future__ import annotations

import json
import math
import pkgutil
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

FOLDER = Path(__file__).parent / "measured"


@cache
def operators() -> tuple[str, ...]:
    """Operators that a backend may have, by their files in the reference, which has them all."""
    from . import reference

    files = (module.name for module in pkgutil.iter_modules(reference.__path__))
    return tuple(name for name in files if hasattr(torch.ops.action_kernels, name))


def device_name() -> str:
    return torch.cuda.get_device_name()


def file_of(device: str) -> str:
    """Name of a device's table."""
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '-', device)}.json"


def path_of(name: str) -> Path:
    return FOLDER / file_of(name)


def key_of(operator: str, dtypes: tuple[str, ...]) -> str:
    """What the table calls an operator on rows of these dtypes; different ones are computed in float32."""
    kinds = set(dtypes)
    return operator if not kinds else f"{operator} {kinds.pop() if len(kinds) == 1 else 'float32'}"


def work_of(query: Sequence[int], bank: Sequence[int]) -> int:
    """Multiply-adds of a product of all queries with all bank rows, from their shapes [G, N, D] and [G, M, D]."""
    return math.prod(query) * bank[-2]


def order(operator: str, dtypes: tuple[torch.dtype, ...], usual: tuple[str, ...], magnitude: int) -> tuple[str, ...]:
    """The backends of ``usual`` for an operator on the current GPU, the fastest first; unmeasured ones as they are.

    Args:
        operator: its name.
        dtypes: of the rows.
        usual: the backends.
        magnitude: bits of the call's work.

    Raises:
        ValueError: the device's table is malformed.
    """
    key = key_of(operator, tuple(str(dtype).removeprefix("torch.") for dtype in dtypes))
    measured = read(path_of(device_name()), usual).get(key, ())
    nearest = min(measured, key=lambda one: abs(one.work.bit_length() - magnitude), default=None)
    fastest = nearest.order if nearest else ()
    return (*fastest, *(name for name in usual if name not in fastest))


class Measured(NamedTuple):
    """Backends for calls of about this work, the fastest first."""

    work: int
    order: tuple[str, ...]


@cache
def read(path: Path, known: tuple[str, ...]) -> dict[str, tuple[Measured, ...]]:
    """What a table says of each operator and dtype; nothing where there is no table."""
    if not path.is_file():
        return {}
    try:
        entries = list(json.loads(path.read_text())["backends"].items())
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no table of backends ({type(error).__name__}: {error})") from error
    found = {}
    for key, measured in entries:
        if key.partition(" ")[0] not in operators():
            raise ValueError(f"{path}: {key!r} is no operator: choose from {', '.join(operators())}")
        if not isinstance(measured, list) or not all(_is_measured(one, known) for one in measured):
            raise ValueError(
                f'{path}: {key!r}: must be a list of {{"work": whole number, "order": list of {", ".join(known)}}}, '
                f"not {measured!r}"
            )
        found[key] = tuple(Measured(one["work"], tuple(one["order"])) for one in measured)
    return found


def _is_measured(one: object, known: tuple[str, ...]) -> bool:
    if not isinstance(one, dict) or set(one) != {"work", "order"}:
        return False
    work, names = one["work"], one["order"]
    return type(work) is int and work >= 0 and isinstance(names, list) and all(name in known for name in names)
