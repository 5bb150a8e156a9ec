"""Write ``docs/reference/settings.md`` from the dataclasses of settings: ``python -m tools.docs.settings``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from action.choices import OwnClass
from action.config import TrainConfig

from ..command import run

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"
HEAD = """# Settings of `action.train`

Every setting is a flag (`--optimizer.lr 0.01`) and a key of a YAML file (`--config FILE`); later files and flags
override earlier ones. Each is checked by its name before anything is read or written. "published" is the value of the
paper, which `configs/published.yaml` has where it differs. This page is written by `python -m tools.docs.settings`.
"""


def page() -> str:
    """The page as it has to be."""
    groups = [f for f in fields(TrainConfig) if is_dataclass(get_type_hints(TrainConfig)[f.name])]
    lines = [HEAD, "## The run", "", *_table(TrainConfig, TrainConfig(), "")]
    for group in groups:
        kind, default = get_type_hints(TrainConfig)[group.name], getattr(TrainConfig(), group.name)
        lines += ["", f"## {group.name}", "", _summary(kind), "", *_table(kind, default, f"{group.name}.")]
    return "\n".join(lines) + "\n"


def _table(kind: type, default: Any, prefix: str) -> Iterator[str]:
    yield from ("| setting | default | meaning | allowed |", "|---|---|---|---|")
    hints, meanings = get_type_hints(kind), _meanings(kind)
    for item in fields(default):
        if not is_dataclass(hints[item.name]):
            value, allowed = _shown(getattr(default, item.name)), _allowed(item, hints[item.name])
            yield f"| `{prefix}{item.name}` | {value} | {meanings[item.name]} | {allowed} |"


def _allowed(item: Field[Any], hint: Any) -> str:
    if "range" in item.metadata:
        low, high = item.metadata["range"]
        return f"{_bound(low)} to {_bound(high)}" if high != float("inf") else f"{_bound(low)} or more"
    kinds = [hint, *get_args(hint)]  # some names, or one of the user's
    names = [name for kind in kinds if get_origin(kind) is Literal for name in get_args(kind)]
    if names:
        return ", ".join([*(f"`{name}`" for name in names), *(["a class"] if OwnClass in kinds else [])])
    return {bool: "true, false", dict: "names with values"}.get(get_origin(hint) or hint, "text")


def _bound(value: float) -> str:
    """Short, so that the column is narrow."""
    if value > 2**62:
        return f"2<sup>63</sup> - {2**63 - int(value)}"
    exponent = len(str(int(value))) - 1
    return f"10<sup>{exponent}</sup>" if exponent > 4 and value == 10**exponent else f"{value:,}"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value)


def _summary(kind: type) -> str:
    return inspect.cleandoc(str(kind.__doc__)).partition("\n\n")[0].replace("\n", " ")


def _meanings(kind: type) -> dict[str, str]:
    """What the docstring's section ``Args`` says of each field."""
    section = inspect.cleandoc(str(kind.__doc__)).partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;") for name, text in entries}


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    run(main)
