"""The pages of ``--help``: the main options and an example, and ``--help-all``: every setting with its range."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from jsonargparse import DefaultHelpFormatter

from action.config import TrainConfig, reach

MAIN = {
    *("data", "format", "method", "labeled", "seed", "output", "config"),
    *("folds", "resume", "overwrite", "device", "precision", "help", "help_all"),
}
"""The options of a training that ``--help`` shows."""


def ranges(settings: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Name and range of every number in these settings and in those that they hold."""
    for declared in fields(settings):
        name, value = f"{prefix}{declared.name}", getattr(settings, declared.name)
        if is_dataclass(value):
            yield from ranges(value, f"{name}.")
        elif "range" in declared.metadata:
            each = "each " if "tuple" in str(declared.type) else ""
            yield name, each + reach(*declared.metadata["range"])


RANGES = dict(ranges(TrainConfig()))
_TYPE, _DEFAULT = "type: %(type)s, ", "default: %(default)s"


class HelpPage(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """A page of options; the description and the example stay in lines as they are."""


class SettingsPage(HelpPage):
    """Every setting of a training, its numbers with their ranges."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = str(super()._get_help_string(action))
        found = RANGES.get(action.dest)
        return text.replace(_DEFAULT, f"{found}, {_DEFAULT}") if found else text


class MainPage(HelpPage):
    """The main options of a training, short enough for a screen."""

    def add_argument(self, action: argparse.Action) -> None:
        """Take the action if it is a main one."""
        if action.dest in MAIN:
            super().add_argument(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = str(super()._get_help_string(action)).replace(_TYPE, "")
        says_nothing = action.default is None or action.default is False
        return text.replace(f" ({_DEFAULT})", "") if says_nothing else text


class ShowAll(argparse.Action):
    """The flag ``--help-all``."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(
            option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="Show every setting with its range."
        )

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.formatter_class = SettingsPage
        parser.print_help()
        parser.exit()
