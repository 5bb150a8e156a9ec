"""Installing without a working compiler: it succeeds, says why in one line, and the backend remembers the reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools")
pytest.importorskip("pybind11")
pytest.importorskip("ninja")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the build reads, never built."""
    for name in ("action_kernels", "csrc"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "_cpu_build.txt", "__pycache__")
        )
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "action").mkdir()
    (tmp_path / "README.md").touch()
    return tmp_path


def build(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=checkout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def state(checkout: Path) -> str:
    """What the copy's registry says about its native backend."""
    # An editable installation's finder would look for the copy's missing module in the checkout it was installed from.
    script = (
        "import sys; sys.meta_path = [x for x in sys.meta_path if 'editable' not in repr(x).lower()]\n"
        "import action_kernels; print(action_kernels.__file__); print(action_kernels.backends()['cpu'])"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=checkout, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    place, *reason = result.stdout.splitlines()
    assert Path(place).is_relative_to(checkout)
    return "\n".join(reason)


def test_no_compiler(checkout: Path) -> None:
    result = build(checkout, CXX="no-such-compiler")
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if "left out" in line]
    assert said == ["action_kernels: native CPU module left out: no C++ compiler found (no-such-compiler)"]
    assert "no C++ compiler found (no-such-compiler)" in state(checkout)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no compiler")
def test_failing_compilation(checkout: Path) -> None:
    for source in checkout.glob("csrc/*/*.cpp"):
        source.write_text("")
    (checkout / "csrc/cpu/sort.cpp").write_text("#error this source is broken\n")
    result = build(checkout)
    assert result.returncode == 0, result.stderr
    assert "native CPU module left out" in result.stderr
    reason = state(checkout)
    assert "this source is broken" in reason
    assert len(reason.splitlines()) == 1


def test_unbuilt_checkout_still_works(checkout: Path) -> None:
    assert "not installed" in state(checkout)


def test_build_needs_no_torch() -> None:
    requires = next(
        line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("requires =")
    )
    assert "pybind11" in requires and "torch" not in requires
    assert "import torch" not in (ROOT / "setup.py").read_text()
