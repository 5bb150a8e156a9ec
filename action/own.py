"""Classes of the user's, which settings name as ``package.module:Class``."""

from __future__ import annotations

from importlib import import_module
from typing import Any, TypeVar

from action.errors import InputError
from action.suggestions import did_you_mean

PATTERN = r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*"
"""Of such a name; a dot may stand for the colon. Names of the project's own have neither."""

ClassT = TypeVar("ClassT")


def is_own(name: str) -> bool:
    """Whether a setting's value is the name of a class, and not one of the project's names."""
    return ":" in name or "." in name


def short(name: str) -> str:
    """The name without its module: a part of a file's name."""
    return _parts(name)[1] if is_own(name) else name


def own_class(name: str, setting: str, kind: type[ClassT]) -> type[ClassT]:
    """Import the class that a setting names.

    Args:
        name: ``package.module:Class``, or with a dot for the colon.
        setting: for messages.
        kind: what the class must be derived from.

    Raises:
        InputError: no such module or class, a module that fails, or a class of another kind.
    """
    module_name, class_name = _parts(name)
    said = f"{setting} is '{name}'"
    try:
        module = import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(
                f"{said}, but there is no module {error.name}: correct the name, or start in the folder that holds it"
            ) from None
        raise InputError(
            f"{said}, but {module_name} cannot be imported ({type(error).__name__}: {error}): correct it"
        ) from error
    found: Any = getattr(module, class_name, None)
    if found is None:
        classes = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, kind)]
        raise InputError(f"{said}, but {module_name} has no {class_name}{did_you_mean(class_name, classes)}")
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise InputError(f"{said}, which is no class derived from {kind.__module__}.{kind.__qualname__}: name one")
    return found


def _parts(name: str) -> tuple[str, str]:
    module, _, last = name.rpartition(":" if ":" in name else ".")
    return module, last
