"""Commands that hand the flags after ``--`` on to ``action.train``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

from jsonargparse import auto_cli

from action import cli


def run(function: Callable[..., None]) -> NoReturn:
    """Call ``function`` with the command line's flags."""
    cli.run(partial(call, function))


def call(function: Callable[..., None], argv: Sequence[str]) -> None:
    """Call ``function`` with the flags ``argv``; what stands after ``--`` is its parameter ``flags``."""
    own = list(argv)
    if "--" in own:
        place = own.index("--")
        own = [*own[:place], f"--flags={json.dumps(own[place + 1 :])}"]
    auto_cli(function, args=own, parser_class=cli.Parser)
