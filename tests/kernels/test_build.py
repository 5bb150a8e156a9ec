"""Installing without a working compiler: it succeeds, says why in one line, and the backend remembers the reason."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build_support.toolchain import find_compiler, has_openmp

pytest.importorskip("setuptools")
pytest.importorskip("pybind11")
pytest.importorskip("ninja")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the build reads, never built."""
    for name in ("action_kernels", "build_support", "csrc"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "_*_build.txt", "__pycache__")
        )
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "action").mkdir()
    (tmp_path / "README.md").touch()
    return tmp_path


def build(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Builds the copy's native modules, the CUDA one only if the environment says for which architecture."""
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=checkout,
        env={**os.environ, "ACTION_CUDA_ARCHS": "none", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def state(checkout: Path) -> str:
    """What the copy's registry says about its native backend."""
    # An editable installation's finder would look for the copy's missing module in the checkout it was installed from.
    script = (
        "import sys; sys.meta_path = [x for x in sys.meta_path if 'editable' not in repr(x).lower()]\n"
        "import action_kernels; print(action_kernels.__file__); print(action_kernels.list_backends()['cpu'])"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=checkout, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    place, *reason = result.stdout.splitlines()
    assert Path(place).is_relative_to(checkout)
    return "\n".join(reason)


def test_no_compiler(checkout: Path) -> None:
    result = build(checkout, CXX="no-such-compiler")
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if "CPU module left out" in line]
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


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no compiler")
def test_openmp_is_used_only_where_both_its_library_and_its_header_are() -> None:
    compiler = find_compiler()
    assert not has_openmp(compiler, [])  # nothing links the library
    assert not has_openmp(f"{compiler} -nostdinc", ["-fopenmp"])  # nothing finds the header


# A CUDA module of two small sources in place of the kernels.
ANSWER = """
#include "launch.cuh"
namespace action { int answer(); }
ACTION_EXPORT int action_answer() { return action::answer(); }
"""
KERNEL = """
#include "launch.cuh"
namespace {
__global__ void kernel(int* x) { *x = 42; }
}
namespace action {
int answer() { return launch(kernel, 1, 1, 0, nullptr, nullptr) == cudaSuccess ? 0 : 42; }
}
"""
LIBRARY, REASON = "action_kernels/_cuda_kernels.so", "action_kernels/_cuda_build.txt"


@pytest.fixture
def cuda_checkout(checkout: Path) -> Path:
    for source in (checkout / "csrc/cuda").glob("*.cu"):
        source.unlink()
    (checkout / "csrc/cuda/answer.cu").write_text(ANSWER)
    (checkout / "csrc/cuda/kernel.cu").write_text(KERNEL)
    for source in checkout.glob("csrc/*/*.cpp"):
        source.write_text("")
    return checkout


needs_nvcc = pytest.mark.skipif(
    not shutil.which("nvcc") and not Path("/usr/local/cuda/bin/nvcc").exists(), reason="no nvcc"
)


@needs_nvcc
def test_cuda_module(cuda_checkout: Path) -> None:
    (cuda_checkout / REASON).write_text("of an earlier build\n")
    result = build(cuda_checkout, ACTION_CUDA_ARCHS="sm_80, 9.0")
    assert result.returncode == 0, result.stderr
    assert "CUDA module left out" not in result.stderr
    assert not (cuda_checkout / REASON).exists()
    library = ctypes.CDLL(str(cuda_checkout / LIBRARY))
    assert library.action_answer() in (0, 42)  # without a driver the launch fails
    with pytest.raises(AttributeError):
        _ = library._ZN6action6answerEv
    binary = (cuda_checkout / LIBRARY).read_bytes()
    assert b"sm_80" in binary and b"sm_90" in binary and b"sm_100" not in binary
    linked = subprocess.run(["ldd", cuda_checkout / LIBRARY], capture_output=True, text=True).stdout
    assert "cudart" not in linked and "torch" not in linked


@needs_nvcc
def test_failing_cuda_compilation(cuda_checkout: Path) -> None:
    (cuda_checkout / "csrc/cuda/kernel.cu").write_text("#error this kernel is broken\n")
    result = build(cuda_checkout, ACTION_CUDA_ARCHS="90")
    assert result.returncode == 0, result.stderr
    assert not (cuda_checkout / LIBRARY).exists()
    reason = (cuda_checkout / REASON).read_text().splitlines()
    assert len(reason) == 1 and "this kernel is broken" in reason[0]


def test_no_cuda_module_where_there_is_no_nvcc(checkout: Path) -> None:
    script = (
        "import shutil; shutil.which = lambda *_, **__: None\n"
        "from build_support import toolchain; toolchain.find_nvcc()"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=checkout, capture_output=True, text=True)
    assert "BuildError: nvcc not found (in PATH, CUDA_HOME, /usr/local/cuda)" in result.stderr


def test_cuda_module_can_be_left_out(cuda_checkout: Path) -> None:
    result = build(cuda_checkout, ACTION_CUDA_ARCHS="none")
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if "CUDA module left out" in line]
    reason = (cuda_checkout / REASON).read_text().strip()
    assert said == [f"action_kernels: native CUDA module left out: {reason}"]
    assert reason == "ACTION_CUDA_ARCHS is none"


def test_unbuilt_checkout_still_works(checkout: Path) -> None:
    assert "not installed" in state(checkout)


def test_build_needs_no_torch() -> None:
    requires = next(
        line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("requires =")
    )
    assert "pybind11" in requires and "torch" not in requires
    for path in (ROOT / "setup.py", *(ROOT / "build_support").glob("*.py")):
        assert "import torch" not in path.read_text()


def test_only_what_has_changed_is_compiled_again(cuda_checkout: Path) -> None:
    def objects() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (cuda_checkout / "build").rglob("*.o")}

    environment = {"CXXFLAGS": "-O0", "MAX_JOBS": "1"}
    header = cuda_checkout / "csrc/cpu/chunks.h"
    header.write_text("")
    (cuda_checkout / "csrc/cpu/sort.cpp").write_text('#include "chunks.h"\n')
    assert build(cuda_checkout, **environment).returncode == 0
    before = objects()
    assert {"native.o", "sort.o", "bank_pass.generic.o"} <= set(before)
    assert build(cuda_checkout, **environment).returncode == 0
    assert objects() == before
    header.write_text("// changed\n")
    assert build(cuda_checkout, **environment).returncode == 0
    assert {name for name, time in objects().items() if time != before[name]} == {"sort.o"}
