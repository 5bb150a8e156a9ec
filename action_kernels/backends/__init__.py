"""The registry: which backends exist, whether each can run, and which one a call gets.

A backend is a module of this package with the functions of :class:`~action_kernels.backends.interface.Backend`. Adding
one takes the module, its name in ``_NAMES`` and its place in ``_PREFERRED``. Modules are imported when first asked for;
one that fails to import stays listed with the reason.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from contextvars import ContextVar, Token
from functools import cache
from typing import cast

import torch

from . import choice
from .interface import Backend, Unusable

__all__ = ["backends", "select", "use_backend"]

ENVIRONMENT_VARIABLE = "ACTION_KERNELS_BACKEND"

_NAMES = ("reference", "cpu", "triton", "cuda")
_PREFERRED: dict[str, tuple[str, ...]] = {
    "cpu": ("cpu",),
    "cuda": ("triton", "cuda"),
}  # by device; the reference is everybody's last choice. A GPU's own table (choice.py) goes before.

_chosen: ContextVar[str | None] = ContextVar("action_kernels_backend", default=None)


@cache
def _load(name: str) -> Backend | str:
    """The backend's module, or the reason why it cannot run; remembered."""
    try:
        module = cast(Backend, importlib.import_module(f"{__name__}.{name}"))
        return module.unavailable() or module
    except Unusable as reason:
        return str(reason)
    except Exception as error:  # whatever goes wrong is the state that `backends()` and `use_backend` report
        return f"{type(error).__name__}: {error}"


def backends() -> dict[str, str]:
    """Every backend by name with its state: ``"ready"``, or the reason why it cannot run here."""
    states = {name: _load(name) for name in _NAMES}
    return {name: state if isinstance(state, str) else "ready" for name, state in states.items()}


def _named(name: str, source: str) -> Backend:
    if not isinstance(name, str) or name not in _NAMES:
        raise ValueError(f"{source} names an unknown backend {name!r}; the backends are {', '.join(_NAMES)}")
    backend = _load(name)
    if isinstance(backend, str):
        raise RuntimeError(
            f"backend {name!r} was asked for by {source} but cannot run: {backend}; choose another one or none"
        )
    return backend


class use_backend(ContextDecorator):
    """Run the operators called inside a ``with`` block, or a decorated function, on the backend ``name``.

    The call itself checks the name and changes nothing: a choice for the whole process is the environment variable
    ``ACTION_KERNELS_BACKEND``.

    The choice belongs to the current thread (or asynchronous task); a backward pass runs on its forward's choice.
    ``None`` returns to the default: the environment variable if set, otherwise by device and dtype. A graph from
    ``torch.compile`` follows the choice in force when it runs, its backward pass the one in force when it was compiled.

    Raises:
        ValueError: no backend has this name.
        RuntimeError: it cannot run here; an operator raises it too where the backend does not take its device or dtype.
    """

    def __init__(self, name: str | None) -> None:
        if name is not None:
            _named(name, "use_backend")
        self._name = name
        self._before: list[Token] = []  # the same object may be entered again inside its own block

    def __enter__(self) -> None:
        self._before.append(_chosen.set(self._name))

    def __exit__(self, *exception: object) -> None:
        _chosen.reset(self._before.pop())

    def _recreate_cm(self) -> use_backend:
        return use_backend(self._name)  # a decorated function may run in several threads at once


def chosen() -> str | None:
    """The name that :func:`use_backend` has put in force, if any."""
    return _chosen.get()


@contextmanager
def pinned(name: str | None) -> Iterator[None]:
    """Put an earlier :func:`chosen` back in force: its name has been checked."""
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def select(device_type: str, dtypes: tuple[torch.dtype, ...], kernel: str = "") -> Backend:
    """The backend for floating tensors of ``dtypes`` on ``device_type``, for a function of :class:`Backend`."""
    name, source = _chosen.get(), "use_backend"
    if name is None:
        name, source = os.environ.get(ENVIRONMENT_VARIABLE), f"the environment variable {ENVIRONMENT_VARIABLE}"
    if not name:
        return _automatic(device_type, dtypes, kernel)
    backend = _named(name, source)
    if reason := backend.supports(device_type, dtypes):
        raise RuntimeError(
            f"backend {name!r} was asked for by {source} but cannot run this call: {reason}; choose another one or none"
        )
    return backend


@cache
def _automatic(device_type: str, dtypes: tuple[torch.dtype, ...], kernel: str) -> Backend:
    """The first preferred backend that is ready and takes the call, else the reference."""
    reasons = []
    for name in _order(device_type, dtypes, kernel):
        backend = _load(name)
        if isinstance(backend, str):
            reasons.append(f"{name}: {backend}")
        elif not backend.supports(device_type, dtypes):
            return backend
    if reasons or device_type not in _PREFERRED:
        _say_fallback(device_type, "; ".join(reasons) or f"no fused backend for {device_type}")
    return _named("reference", "the automatic choice")


def _order(device_type: str, dtypes: tuple[torch.dtype, ...], kernel: str) -> tuple[str, ...]:
    usual = _PREFERRED.get(device_type, ())
    if device_type != "cuda" or len(usual) < 2 or not torch.cuda.is_available():
        return usual
    return choice.order(kernel, dtypes, usual)


@cache
def _say_fallback(device_type: str, reason: str) -> None:
    """Once a process and device: plain PyTorch is correct, but it stores the similarities."""
    warnings.warn(f"action_kernels runs on plain PyTorch on {device_type} ({reason})", RuntimeWarning, stacklevel=2)
