"""The kernels of a backend as functions: ``Kernels("cpu").action_contrast(...)``."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

OPERATORS = ("action_contrast", "hard_negatives", "anatomical_contrast", "log_sum_exp", "relation_negatives")
WHOLE = ("reference", "cpu", "triton", "cuda")  # backends that have them all; another one may lack some


def operator_file(backend: str, operator: str) -> ModuleType:
    return import_module(f"action_kernels.backends.{backend}.{operator}")


class Kernels:
    """Every kernel of a backend; the files are imported when one is asked for, since a backend may not run here."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operator = next(operator for operator in OPERATORS if name.startswith(operator))
        return getattr(operator_file(self.backend, operator), name)
