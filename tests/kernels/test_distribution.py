"""The source distribution is complete: a wheel by cibuildwheel's settings has the native kernels, and no checkout."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import action
import action_kernels

pyprojecttoml = pytest.importorskip("setuptools.config.pyprojecttoml")
pytest.importorskip("pybind11")
pytest.importorskip("ninja")

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
OFFLINE = ["--no-index", "--no-deps"]
EXTENSION = sysconfig.get_config_var("EXT_SUFFIX")
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
    files = {path.name for path in ROOT.iterdir() if path.suffix in (".md", ".cff", ".py", ".toml")}
    assert {"README.md", "CITATION.cff", "CHANGELOG.md", "pyproject.toml"} <= files
    assert {"LICENSE", *files} <= names


def test_the_version_stands_in_one_place() -> None:
    assert action.__version__ == action_kernels.__version__
    found = [path.name for path in (ROOT / "pyproject.toml", ROOT / "setup.py") if 'version = "0' in path.read_text()]
    assert found == []
    assert f"version: {action_kernels.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {action_kernels.__version__} " in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no compiler")
def test_an_installation_without_the_checkout_has_the_native_kernels(sdist: Path, tmp_path: Path) -> None:
    settings = pyprojecttoml.load_file(ROOT / "pyproject.toml")["tool"]["cibuildwheel"]
    environment = settings["environment"] | {"CXXFLAGS": "-O0", "ACTION_PORTABLE": "1"}  # in a fifth of the time
    run([*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", ".", str(sdist)], tmp_path, **environment)
    wheel = next(tmp_path.glob("*.whl"))
    assert wheel.stem.endswith(sysconfig.get_platform().replace("-", "_").replace(".", "_"))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    packages = {name.partition("/")[0] for name in names}
    assert {name for name in packages if not name.endswith(".dist-info")} == {"action", "action_kernels"}
    assert [name for name in names if name.endswith(".so")] == [f"action_kernels/_native{EXTENSION}"]
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert "\nLicense-Expression: Apache-2.0\n" in metadata and "\nAuthor: ACTION developers\n" in metadata

    venv.create(tmp_path / "venv", with_pip=False)
    python = str(tmp_path / "venv/bin/python")
    run([*PIP, "--python", python, "install", *OFFLINE, str(wheel)], tmp_path)
    # The libraries of this environment, without what its own .pth files add: the checkout, where it is installed.
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip()
    present = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(site, "present.pth").write_text("\n".join(sorted(present)))
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({TRAINING}))  # importing one of them fails\n"
        "import action, action_kernels, torch\n"
        "from importlib.metadata import version\n"
        "print(action_kernels.__file__, action_kernels.list_backends()['cpu'], sep='\\n')\n"
        "print(version('action-contrast'), action.__version__, action_kernels.__version__)\n"
        "x = torch.eye(3)\n"
        "with action_kernels.use_backend('cpu'): print(action_kernels.hard_negatives(x, x, 1)[1].tolist())"
    )
    place, state, versions, index = run([python, "-c", script], tmp_path, PYTHONPATH="").splitlines()
    assert Path(place).is_relative_to(tmp_path)
    assert (state, index) == ("ready", "[[0], [1], [2]]")
    assert versions.split() == 3 * [action_kernels.__version__]
    _, *test = shlex.split(settings["test-command"])
    run([python, *test], tmp_path, PYTHONPATH="")
