"""The library of ``csrc/cuda``: its launchers, and where they run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import native

HOST = os.environ.get("ACTION_CUDA_HOST")

_PACKAGE = Path(__file__).parents[2]
_LIBRARY = _PACKAGE / "_cuda_kernels.so"
_REASON_FILE = _PACKAGE / "_cuda_build.txt"

_one_at_a_time = threading.RLock()  # kernels compiled for the CPU share their threads


@cache
def launchers() -> native.Launchers | str:
    """The launchers by name, or why there are none."""
    path = Path(HOST) if HOST else _LIBRARY
    if not path.exists():
        reason = f"{path} does not exist"
        if not HOST and _REASON_FILE.exists():
            reason = _REASON_FILE.read_text().strip()
        return f"the kernels were not built: {reason}"
    try:
        return native.load(path)[1]
    except (OSError, AttributeError, ValueError) as error:
        return f"the kernels do not load: {error}"


def bind(name: str, params: type[NamedTuple]) -> Callable[[NamedTuple, Tensor], None]:
    """A launcher, as a function of its parameters and a tensor on whose device and current stream it runs.

    Raises:
        ImportError: there is no library, or it declares other parameters.
    """
    found = launchers()
    if isinstance(found, str):
        raise ImportError(found)
    launcher = native.bind(found, name, params)

    def launch(values: NamedTuple, x: Tensor) -> None:
        with on_device(x):
            launcher(values, 0 if HOST else torch.cuda.current_stream().cuda_stream)

    return launch


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Launches inside the ``with`` block go to the device of ``x``."""
    return _one_at_a_time if HOST else torch.cuda.device(x.device)


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU. On the CPU a few, so that work is split there too."""
    return 4 if HOST else torch.cuda.get_device_properties(device).multi_processor_count
