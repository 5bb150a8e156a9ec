"""Layouts of data sets on disk, a file each: ``formats/acdc.py`` is what ``--format acdc`` reads.

A new file here is found by itself; it must assign an object of a subclass of ``action.data.cases.Format`` to
``FORMAT``. A class of the user's, named as ``package.module:Class``, is made without arguments.
"""

from importlib import import_module
from pkgutil import iter_modules

from action.data.cases import Format
from action.errors import InputError
from action.own import is_own, own_class

FORMATS: dict[str, Format] = {
    module.name: import_module(f"{__name__}.{module.name}").FORMAT for module in iter_modules(__path__)
}
"""The known layouts by the name that ``--format`` takes."""


def format_named(name: str) -> Format:
    """The layout of a name, or of a class of the user's.

    Raises:
        InputError: no such name, or a class that cannot be imported or is no format.
    """
    if is_own(name):
        return own_class(name, "format", Format)()  # type: ignore[type-abstract]
    if name not in FORMATS:
        raise InputError(f"unknown data format '{name}': choose one of {', '.join(FORMATS)}, or auto")
    return FORMATS[name]
