"""The registry: which backends exist, whether each can run, and which one a call gets.

A backend is a package in here with a file per operator (:mod:`~action_kernels.backends.interface`); adding one takes
the package and a line in ``_BACKENDS``. Packages are imported when first asked for; one that fails to import stays
listed with the reason.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, contextmanager
from contextvars import ContextVar, Token
from functools import cache
from typing import Any, cast

import torch

from . import choice
from .interface import Backend, Unusable

__all__ = ["kernel", "list_backends", "select", "use_backend"]

ENVIRONMENT_VARIABLE = "ACTION_KERNELS_BACKEND"

# Name -> the kind of device that chooses it automatically; earlier names are tried first, the reference last. On a GPU
# the table of measurements (choice.py) takes precedence over this order.
_BACKENDS = {
    "reference": None,
    "cpu": "cpu",
    "triton": "cuda",
    "cuda": "cuda",
}

_chosen: ContextVar[str | None] = ContextVar("action_kernels_backend", default=None)


@cache
def _load(name: str) -> Backend | str:
    """The backend's module, or the reason why it cannot run; remembered."""
    try:
        module = cast(Backend, importlib.import_module(f"{__name__}.{name}"))
        return module.unavailable() or module
    except Unusable as reason:
        return str(reason)
    except Exception as error:  # whatever goes wrong is the state that `list_backends` and `use_backend` report
        return f"{type(error).__name__}: {error}"


def list_backends() -> dict[str, str]:
    """Every backend by name with its state: ``"ready"``, or the reason why it cannot run here."""
    states = {name: _load(name) for name in _BACKENDS}
    return {name: state if isinstance(state, str) else "ready" for name, state in states.items()}


def choosable(device_type: str) -> tuple[str, ...]:
    """The backends that a call on this kind of device may get without asking for one, in the order of the registry."""
    return tuple(name for name, chooser in _BACKENDS.items() if chooser == device_type)


def _named(name: str, source: str) -> Backend:
    if not isinstance(name, str) or name not in _BACKENDS:
        raise ValueError(f"{source} names an unknown backend {name!r}; the backends are {', '.join(_BACKENDS)}")
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
        self._before: list[Token[str | None]] = []  # the same object may be entered again inside its own block

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


def kernel(
    operator: str, name: str, device_type: str, dtypes: tuple[torch.dtype, ...], work: int = 0
) -> Callable[..., Any]:
    """The function ``name`` of an operator's file in the backend that a call gets."""
    found = _function(select(device_type, dtypes, operator, work, name), operator, name)
    assert found is not None  # `select` gives a backend that has the function
    return found


def select(
    device_type: str, dtypes: tuple[torch.dtype, ...], operator: str = "", work: int = 0, function: str = ""
) -> Backend:
    """The backend for floating tensors of ``dtypes`` on ``device_type``; one that has the operator, if it is named.

    And one that has this ``function`` of it, by default the operator's own. On a GPU, the backend that was measured to
    be the fastest for about as much ``work`` (``choice.work_of``).
    """
    function = function or operator
    name, source = _chosen.get(), "use_backend"
    if name is None:
        name, source = os.environ.get(ENVIRONMENT_VARIABLE), f"the environment variable {ENVIRONMENT_VARIABLE}"
    if not name:
        return _automatic(device_type, dtypes, operator, function, work.bit_length())
    backend = _named(name, source)
    if reason := _refusal(backend, device_type, dtypes, operator, function):
        raise RuntimeError(
            f"backend {name!r} was asked for by {source} but cannot run this call: {reason}; choose another one or none"
        )
    return backend


@cache
def _function(backend: Backend, operator: str, name: str) -> Callable[..., Any] | None:
    """A kernel of a backend, or None where the backend does not have the operator, or not this function of it."""
    file = f"{backend.__name__}.{operator}"
    try:
        return cast("Callable[..., Any] | None", getattr(importlib.import_module(file), name, None))
    except ModuleNotFoundError as error:
        if error.name != file:
            raise
        return None


def _refusal(
    backend: Backend, device_type: str, dtypes: tuple[torch.dtype, ...], operator: str, function: str
) -> str | None:
    """Why a backend does not take a call, or None."""
    if reason := backend.supports(device_type, dtypes):
        return reason
    return f"it has no {function}" if operator and _function(backend, operator, function) is None else None


@cache
def _automatic(
    device_type: str, dtypes: tuple[torch.dtype, ...], operator: str, function: str, magnitude: int
) -> Backend:
    """The first backend for this kind of device that is ready and takes the call, else the reference."""
    names = _order(device_type, dtypes, operator, magnitude)
    reasons = []
    for name in names:
        backend = _load(name)
        if isinstance(backend, str):
            reasons.append(f"{name}: {backend}")
        elif not _refusal(backend, device_type, dtypes, operator, function):
            return backend
    if reasons or not names:
        _say_fallback(device_type, "; ".join(reasons) or f"no fused backend for {device_type}")
    return _named("reference", "the automatic choice")


def _order(device_type: str, dtypes: tuple[torch.dtype, ...], operator: str, magnitude: int) -> tuple[str, ...]:
    usual = choosable(device_type)
    if device_type != "cuda" or len(usual) < 2 or not torch.cuda.is_available():
        return usual
    return choice.order(operator, dtypes, usual, magnitude)


@cache
def _say_fallback(device_type: str, reason: str) -> None:
    """Once per process and device: plain PyTorch is correct, but it stores the similarities."""
    warnings.warn(f"action_kernels runs on plain PyTorch on {device_type} ({reason})", RuntimeWarning, stacklevel=2)
