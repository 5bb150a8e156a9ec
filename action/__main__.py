"""``python -m action`` lists the commands; ``python -m action train ...`` is ``python -m action.train ...``."""

from __future__ import annotations

import runpy
import sys

from action.commands import COMMANDS, example, program
from action.suggestions import did_you_mean

NOTES = """Each command explains itself with --help; python -m action_kernels tells which
backends are ready. For completion by Tab: pip install argcomplete, then
activate-global-python-argcomplete."""


def overview() -> str:
    """The commands, a line and an example each."""
    lines = ["ACTION: semi-supervised segmentation of medical images.", ""]
    for name, command in COMMANDS.items():
        lines += [f"{name:<10}{command.does}", f"    {example(name)}", ""]
    return "\n".join([*lines, NOTES])


def main(arguments: list[str]) -> int:
    """Run the command that comes first, or list them all; the exit status."""
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        sys.argv = [program(name), *arguments[1:]]
        runpy.run_module(f"action.{name}", run_name="__main__", alter_sys=True)
        return 0
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name == "--version":
        from action import __version__

        print(__version__)
        return 0
    hint = did_you_mean(name, COMMANDS, otherwise=f": choose one of {', '.join(COMMANDS)}")
    print(f"error: there is no command '{name}'{hint}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
