"""Commands that hand the flags after ``--`` on to ``action.train``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NoReturn

from jsonargparse import auto_cli

from action import cli


def run(function: Callable[..., None]) -> NoReturn:
    """Call ``function`` with the command line's flags; what stands after ``--`` is its parameter ``flags``."""

    def main(argv: list[str]) -> None:
        if "--" in argv:
            place = argv.index("--")
            argv = [*argv[:place], f"--flags={json.dumps(argv[place + 1 :])}"]
        auto_cli(function, args=argv, parser_class=cli.Parser)

    cli.run(main)
