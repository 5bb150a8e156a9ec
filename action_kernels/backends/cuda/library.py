"""The library of ``csrc/cuda``: its launchers, and where they run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import native

HOST = os.environ.get("ACTION_CUDA_HOST")

_PACKAGE = Path(__file__).parents[2]
_LIBRARY = _PACKAGE / "_cuda_kernels.so"
_REASON_FILE = _PACKAGE / "_cuda_build.txt"

_one_at_a_time = threading.RLock()  # kernels compiled for the CPU share their threads


def path() -> Path:
    """Where the library is, if it was built."""
    return Path(HOST) if HOST else _LIBRARY


@cache
def launchers() -> native.Launchers | str:
    """The launchers by name, or why there are none."""
    if not path().exists():
        reason = f"{path()} does not exist"
        if not HOST and _REASON_FILE.exists():
            reason = _REASON_FILE.read_text().strip()
        return f"the kernels were not built: {reason}"
    try:
        return native.load(path())[1]
    except (OSError, AttributeError, ValueError) as error:
        return f"the kernels do not load: {error}"


def bind(name: str, params: type[NamedTuple]) -> Callable[[NamedTuple], None]:
    """A launcher, as a function of its parameters; it runs on the device and current stream of their first tensor.

    Where ``workspace`` is the last of them, the launcher gets one of the size that it asks for.

    Raises:
        ImportError: there is no library, or it declares other parameters.
    """
    found = launchers()
    if isinstance(found, str):
        raise ImportError(found)
    launcher: Any = native.bind(found, name, params)
    takes_workspace = params._fields[-1] == "workspace"

    def launch(values: NamedTuple) -> None:
        device = next(x for x in values if isinstance(x, Tensor)).device
        with on_device(device):
            if takes_workspace:
                workspace = new_workspace(launcher.workspace(values), device)
                launcher((*values[:-1], workspace), current_stream())
            else:
                launcher(values, current_stream())

    return launch


def new_workspace(size: int, device: torch.device) -> Tensor:
    """Memory of so many bytes for one call."""
    return torch.empty(size, dtype=torch.uint8, device=device)


def empty(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """New memory for a result."""
    return torch.empty(*shape, dtype=dtype, device=device)


def current_stream() -> int:
    """Where launches go."""
    return 0 if HOST else torch.cuda.current_stream().cuda_stream


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Launches inside the ``with`` block go to this device."""
    return _one_at_a_time if HOST else torch.cuda.device(device)
