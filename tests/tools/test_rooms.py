"""What every command outside the packages keeps to: one style of command line, and no reaching into other modules."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonargparse import auto_cli

ROOT = Path(__file__).parents[2]
ROOMS = ("benchmarks", "build_support", "studies", "tools")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
COMMANDS = {
    "benchmarks.__main__": "main",
    "benchmarks.one_call": "main",
    "benchmarks.rates": "main",
    "benchmarks.reading": "main",
    "benchmarks.scaling": "main",
    "benchmarks.small_calls": "main",
    "benchmarks.training_step": "main",
    "studies.curves": "main",
    "studies.inside": "watch",
    "studies.methods": "compare",
    "studies.overlays": "main",
    "tools.docs.pictures": "pictures",
    "tools.docs.screenshots": "screenshots",
    "tools.docs.settings": "main",
    "tools.estimates.long_bank": "main",
    "tools.estimates.roofline": "main",
    "tools.estimates.shared_bank": "main",
    "tools.estimates.training": "main",
    "tools.machine_code.budgets": "main",
    "tools.machine_code.cuda_kernels": "main",
    "tools.machine_code.triton_kernels": "main",
    "tools.tuning.backends": "main",
    "tools.tuning.tiles": "main",
}


def names(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_every_command_is_listed() -> None:
    assert {names(path) for path in MODULES if '__name__ == "__main__"' in path.read_text()} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_flags_are_a_functions_parameters(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command: Callable = getattr(importlib.import_module(name), COMMANDS[name])
    with pytest.raises(SystemExit) as stop:
        auto_cli(command, args=["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    flags = [f"--{flag}" for flag in command.__annotations__ if flag not in ("return", "table")]
    assert all(flag in shown for flag in flags), shown


@pytest.mark.parametrize("path", MODULES, ids=names)
def test_nothing_reaches_into_another_module(path: Path) -> None:
    """No private name is imported or patched, no object is given another class."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module != "unittest.mock"
            private = [name.name for name in node.names if name.name.startswith("_") and name.name[1] != "_"]
            assert not private, f"line {node.lineno} imports {', '.join(private)}"
        if isinstance(node, ast.Attribute) and not isinstance(node.value, ast.Name):
            continue
        if isinstance(node, ast.Attribute) and node.value.id not in ("self", "cls"):
            own = node.attr.startswith("__") and isinstance(node.ctx, ast.Load)  # such as __name__
            assert own or not node.attr.startswith("_"), f"line {node.lineno}: {node.value.id}.{node.attr}"
