"""The source distribution is complete: a wheel built from it has the native kernels and needs no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools")
pytest.importorskip("pybind11")
pytest.importorskip("ninja")

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
OFFLINE = ["--no-index", "--no-deps"]
BUILT = shutil.ignore_patterns("*.so", "_*_build.txt", "__pycache__", "*.egg-info")
# What the training package needs and the operators do not.
TRAINING = ("jsonargparse", "matplotlib", "monai", "nibabel", "scipy", "tensorboard", "yaml")


def run(command: list[str], where: Path, **environment: str) -> str:
    result = subprocess.run(
        command, cwd=where, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_operators_import_nothing_that_only_the_training_needs() -> None:
    script = f"import sys, action_kernels, action_kernels.__main__\nprint(*set(sys.modules) & {set(TRAINING)})"
    assert run([sys.executable, "-c", script], ROOT).split() == []


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from a copy of the checkout in which nothing was ever built."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("sdist")
    for path in ROOT.iterdir():
        if path.name.startswith(".") or path.name in ("build", "data", "runs", "results", "shared"):
            continue
        if path.is_dir():
            shutil.copytree(path, copy / path.name, ignore=BUILT)
        else:
            shutil.copy(path, copy)
    run([sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(out)], copy)
    return next(out.iterdir())


def test_every_source_is_in_the_source_distribution(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("action", "action_kernels", "build_support", "csrc", "configs", "tests")
    wanted = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    wanted = [path for path in wanted if path.suffix not in (".so", ".pyc") and not path.name.endswith("_build.txt")]
    assert {path.relative_to(ROOT).as_posix() for path in wanted} <= names
    assert {"README.md", "pyproject.toml", "setup.py"} <= names


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no compiler")
def test_an_installation_without_the_checkout_has_the_native_kernels(sdist: Path, tmp_path: Path) -> None:
    environment = {"CXXFLAGS": "-O0", "ACTION_PORTABLE": "1", "ACTION_CUDA_ARCHS": "none"}  # in a fifth of the time
    run([*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", ".", str(sdist)], tmp_path, **environment)
    wheel = next(tmp_path.glob("*.whl"))
    packages = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in packages if not name.endswith(".dist-info")} == {"action", "action_kernels"}

    venv.create(tmp_path / "venv", with_pip=False)
    python = str(tmp_path / "venv/bin/python")
    run([*PIP, "--python", python, "install", *OFFLINE, str(wheel)], tmp_path)
    # The libraries of this environment, without what its own .pth files add: the checkout, where it is installed.
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip()
    present = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(site, "present.pth").write_text("\n".join(sorted(present)))
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({TRAINING}))  # importing one of them fails\n"
        "import action_kernels, torch\n"
        "print(action_kernels.__file__, action_kernels.backends()['cpu'], sep='\\n')\n"
        "x = torch.eye(3)\n"
        "with action_kernels.use_backend('cpu'): print(action_kernels.hard_negatives(x, x, 1)[1].tolist())"
    )
    place, state, index = run([python, "-c", script], tmp_path, PYTHONPATH="").splitlines()
    assert Path(place).is_relative_to(tmp_path)
    assert (state, index) == ("ready", "[[0], [1], [2]]")
