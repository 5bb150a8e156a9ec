"""A page from a template of ``action/pages/templates``, with style, script and data in it."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from action import palette
from action.files import write_aside

_TEMPLATES = Environment(
    loader=PackageLoader("action.pages"),
    autoescape=True,  # names of cases and classes come from files
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A number as tables show it; a dash where there is none."""
    if value is None or isnan(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


_TEMPLATES.filters["number"] = number


def write_page(template: str, path: Path, **values: Any) -> None:
    """Fill a template and write it; a page that is there is replaced whole."""
    text = _TEMPLATES.get_template(template).render(palette=palette, **values)
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
