"""Layouts of data sets on disk, a file each: ``formats/acdc.py`` is what ``--format acdc`` reads.

A new file here is found by itself; it must assign an object of a subclass of ``action.data.cases.Format`` to
``FORMAT``.
"""

from importlib import import_module
from pkgutil import iter_modules

from action.data.cases import Format

FORMATS: dict[str, Format] = {
    module.name: import_module(f"{__name__}.{module.name}").FORMAT for module in iter_modules(__path__)
}
"""The known layouts by the name that ``--format`` takes."""
