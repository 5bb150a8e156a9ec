"""Markdown pages and what the tests take from them: code blocks, links, anchors."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *(page for page in DOCS.rglob("*.md") if not page.is_symlink())])
NOT_RUN = "<!-- not run: a part of a file -->"

_BLOCK = re.compile(
    r"(?P<before>[^\n]*)\n\n?(?P<indent> *)```(?P<language>\w+)\n"  # the comment before it, if there is one
    r"(?P<code>.*?)\n(?P=indent)```",
    re.DOTALL,
)
_LINK = re.compile(r"\]\(([^)\s]+)\)|\b(?:src|srcset)=\"([^\"\s]+)\"")


class Block(NamedTuple):
    """A code block: its line in the page, its text, and whether the page says that it is a part of a file."""

    line: int
    code: str
    runs: bool


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[Block]:
    """The blocks of a language, in order."""
    text = "\n\n" + page.read_text(encoding="utf-8")
    found = (match for match in _BLOCK.finditer(text) if match["language"] == language)
    return [
        Block(text[: match.start("code")].count("\n") - 1, dedent(match["code"]), match["before"].strip() != NOT_RUN)
        for match in found
    ]


def prose(page: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def links(page: Path) -> list[str]:
    """Where the page's links and images point, within the project."""
    targets = [markdown or html for markdown, html in _LINK.findall(prose(page))]
    return [target for target in targets if not target.startswith(("http://", "https://"))]


def anchors(page: Path) -> set[str]:
    """What headings can be linked by."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}
