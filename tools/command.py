"""What the commands have in common: a function's parameters are the flags, and a refusal is one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from jsonargparse import auto_cli


def run(main: Callable[..., int | None]) -> NoReturn:
    """Call ``main`` with the command line's flags; what it returns is the exit status."""
    sys.exit(auto_cli(main))


def refuse(message: str) -> NoReturn:
    """Print the message and exit with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
