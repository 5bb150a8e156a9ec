"""What a call of the CUDA backend leaves to look at: the names of its launches, and its workspace."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import import_module
from types import ModuleType

import pytest
import torch
from torch import Tensor


def library() -> ModuleType:
    return import_module("action_kernels.backends.cuda.library")


@cache
def _loaded() -> ctypes.CDLL:
    found = ctypes.CDLL(str(library().path()))
    found.action_launch.restype = ctypes.c_char_p
    return found


def launches() -> list[str]:
    """The names of the last call's launches, in order."""
    names: list[str] = []
    while (name := _loaded().action_launch(len(names))) is not None:
        names.append(name.decode())
    return names


def kept_workspaces(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The workspaces of all calls from here on."""
    workspaces: list[Tensor] = []
    new_workspace = library().new_workspace

    def keep(size: int, device: torch.device) -> Tensor:
        workspaces.append(new_workspace(size, device))
        return workspaces[-1]

    monkeypatch.setattr(library(), "new_workspace", keep)
    return workspaces


def front(workspace: Tensor, count: int) -> Tensor:
    """The int32 at the front of a workspace: with limits, how many rows were found for each query, or -1 where the
    buffer selected; without, the floors that splits of a bank tell each other."""
    begin = -workspace.data_ptr() % 256  # pieces are aligned
    return workspace[begin : begin + 4 * count].view(torch.int32)
