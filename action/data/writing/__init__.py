"""Writing data sets, a file for each layout: ``writing/acdc.py`` is what ``action.prepare convert --to acdc`` writes.

A new file here is found by itself; it must assign an object of a subclass of ``action.data.writing.base.Writer`` to
``WRITER``, and have the name of the file in ``action.data.formats`` that reads it.
"""

from importlib import import_module
from pkgutil import iter_modules

from action.data.writing.base import Writer

WRITERS: dict[str, Writer] = {
    module.name: import_module(f"{__name__}.{module.name}").WRITER
    for module in iter_modules(__path__)
    if module.name not in ("base", "contents")
}
"""The layouts that can be written, by the name that ``--to`` takes."""
