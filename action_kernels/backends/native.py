"""The border to native code: a launcher takes one NamedTuple of parameters, whose fields the library knows by name.

``csrc/params/layout.h`` is the other side. A parameter is a tensor (or None), a float, an int or a bool; a tensor
crosses as one value (address, dtype, device, sizes, strides), and the launcher checks it before a kernel sees the
address: what does not fit is a ``ValueError`` that names the launcher, the parameter and both sides.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar, cast, get_args, get_type_hints

from torch import Tensor

_PACKAGE = Path(__file__).parent.parent

Params = TypeVar("Params", bound=NamedTuple)
Launchers = Mapping[str, Any]


@cache
def module() -> ModuleType | str:
    """The native module, or why there is none."""
    try:
        from action_kernels import _native  # type: ignore[attr-defined]  # compiled
    except ImportError as error:
        file = _PACKAGE / "_native_build.txt"
        reason = f"is not installed or does not load: {error}"
        if file.exists():
            reason = f"was not built: {file.read_text().strip()}"
        return f"the native module {reason} (needs a C++17 compiler at `pip install`)"
    return cast(ModuleType, _native)


def load(path: Path) -> tuple[ctypes.CDLL, Launchers]:
    """A library beside the native module, and its launchers by name.

    Raises:
        OSError: it does not load.
        AttributeError: it is another library.
        ValueError: it was built from other sources.
    """
    library = ctypes.CDLL(str(path))
    library.action_library.restype = ctypes.c_void_p
    native = module()
    if isinstance(native, str):
        raise OSError(native)
    return library, native.launchers_at(library.action_library())


def bind(launchers: Launchers, name: str, params: type[Params]) -> Callable[..., None]:
    """The launcher ``name``, a function of ``params`` (and a stream).

    Raises:
        ImportError: the library declares other parameters.
    """
    launcher = launchers[name]
    ours = tuple((field, _kind(hint)) for field, hint in get_type_hints(params).items())
    if launcher.parameters != ours:
        other = dict(set(launcher.parameters) ^ set(ours)) or "their order"
        raise ImportError(f"the library's {name} takes other parameters ({other}): build it from these sources")
    return cast("Callable[..., None]", launcher)


def contiguous_labels(
    query_labels: Tensor | None, bank_labels: Tensor | None
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Both as kernels take them, or neither."""
    if query_labels is None or bank_labels is None:
        return None, None
    return query_labels.contiguous(), bank_labels.contiguous()


def _kind(hint: Any) -> str:
    """What the library calls a field's type."""
    named = [member for member in get_args(hint) if member is not type(None)] or [hint]
    return "Tensor" if named == [Tensor] else named[0].__name__
