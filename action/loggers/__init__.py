"""Where the numbers of a training are shown, a file each: ``--loggers [tensorboard]`` asks for ``tensorboard.py``.

A new file here is found by itself; it must assign a subclass of ``action.loggers.base.Logger`` to ``LOGGER``.
"""

from importlib import import_module
from pkgutil import iter_modules

from action.loggers.base import Logger

LOGGERS: dict[str, type[Logger]] = {
    module.name: import_module(f"{__name__}.{module.name}").LOGGER
    for module in iter_modules(__path__)
    if module.name != "base"
}
"""The known loggers by the name that ``--loggers`` takes."""
