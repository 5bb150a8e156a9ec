"""Which backend was measured to be the faster on a GPU: ``measured/<device name>.json``.

``python -m tools.tuning.backends`` writes it. A table has the device, the versions it was measured with, and under
``backends`` an order for each operator and dtype that has been measured, such as ``"hard_negatives bfloat16": ["cuda",
"triton"]``; ``relation_negatives``, which takes no floating rows, is listed without a dtype.
"""

from __future__ import annotations

import json
import pkgutil
import re
from functools import cache
from pathlib import Path

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


def order(operator: str, dtypes: tuple[torch.dtype, ...], usual: tuple[str, ...]) -> tuple[str, ...]:
    """The backends of ``usual`` for an operator on the current GPU, the fastest first; unmeasured ones as they are.

    Raises:
        ValueError: the device's table is malformed.
    """
    key = key_of(operator, tuple(str(dtype).removeprefix("torch.") for dtype in dtypes))
    fastest = read(path_of(device_name()), usual).get(key, ())
    return (*fastest, *(name for name in usual if name not in fastest))


@cache
def read(path: Path, known: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """A table's orders; none where there is no table."""
    if not path.is_file():
        return {}
    try:
        orders = json.loads(path.read_text())["backends"]
        items = list(orders.items())
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no table of backends ({type(error).__name__}: {error})") from error
    for key, names in items:
        if key.partition(" ")[0] not in operators():
            raise ValueError(f"{path}: {key!r} is no operator: choose from {', '.join(operators())}")
        if not isinstance(names, list) or not all(name in known for name in names):
            raise ValueError(f"{path}: {key!r}: must be a list of {', '.join(known)}, not {names!r}")
    return {key: tuple(names) for key, names in items}
