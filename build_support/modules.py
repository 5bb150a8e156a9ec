"""What is compiled: the sources of each native module, and the flags for them."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .toolchain import BuildError, find_compiler, find_nvcc, has_openmp, usual_archs, wanted_archs

ROOT = Path(__file__).resolve().parent.parent
COMPILED_ONCE = ("dispatch", "parallel", "sort")  # of csrc/cpu; the others once per instruction set


@dataclass
class Unit:
    """One compilation: a source, relative to the checkout, and the flags that only it gets."""

    source: str
    object: str
    flags: list[str] = field(default_factory=list)


@dataclass
class Build:
    """How a module is made of its units."""

    compiler: str
    flags: list[str]
    units: list[Unit]
    link: list[str]


@dataclass(frozen=True)
class NativeModule:
    """A native module of the package.

    Args:
        name: as it is imported or loaded.
        title: in messages.
        reason_file: beside the package's modules; why there is no such module.
        folders: of ``csrc``, with its sources.
        plan: how to build it. Raises :class:`BuildError` where it cannot be built.
    """

    name: str
    title: str
    reason_file: str
    folders: tuple[str, ...]
    plan: Callable[[], Build]

    @property
    def sources(self) -> list[str]:
        return self._files(".cpp", ".cu")

    @property
    def headers(self) -> list[str]:
        return self._files(".h", ".cuh")

    def _files(self, *suffixes: str) -> list[str]:
        found = (path for folder in self.folders for path in sorted((ROOT / "csrc" / folder).iterdir()))
        return [path.relative_to(ROOT).as_posix() for path in found if path.suffix in suffixes]


def cpu_units() -> list[Unit]:
    """Kernels once per instruction set, everything else once."""
    variants: dict[str, list[str]] = {"generic": []}
    common = []
    if platform.machine().lower() in ("x86_64", "amd64") and not os.environ.get("ACTION_PORTABLE"):
        common = ["-DACTION_X86"]
        variants["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
        variants["avx512"] = variants["avx2"] + [f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")]
    names = [path.stem for path in sorted((ROOT / "csrc/cpu").glob("*.cpp"))]
    units = [
        Unit(f"csrc/cpu/{name}.cpp", f"{name}.{isa}.o", [f"-DACTION_ISA={isa}", *flags])
        for isa, flags in variants.items()
        for name in names
        if name not in COMPILED_ONCE
    ]
    return units + [Unit(f"csrc/cpu/{name}.cpp", f"{name}.o", common) for name in names if name in COMPILED_ONCE]


def plan_cpu() -> Build:
    """The CPU kernels and the border to every native library: an extension module by pybind11."""
    import pybind11

    compiler = find_compiler()
    openmp = next((f for f in (["-fopenmp"], ["-Xpreprocessor", "-fopenmp", "-lomp"]) if has_openmp(compiler, f)), [])
    link = [*openmp] + (["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])
    flags = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]
    flags += ["-Wall", "-Wno-unknown-pragmas", "-Wno-psabi", *[f for f in openmp if f != "-lomp"]]
    flags += os.environ.get("CXXFLAGS", "").split()
    sanitizers = os.environ.get("ACTION_SANITIZE")
    if sanitizers:
        extra = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
        flags, link = flags + extra, link + extra
    headers = [f'-isystem "{folder}"' for folder in (pybind11.get_include(), sysconfig.get_path("include"))]
    border = [Unit("csrc/bindings/native.cpp", "native.o", headers), Unit("csrc/params/checks.cpp", "checks.o")]
    return Build(compiler, flags, [*border, *cpu_units()], link)


def plan_cuda() -> Build:
    """The CUDA module: a library with no part of Python in it."""
    if os.environ.get("ACTION_SANITIZE"):
        raise BuildError("ACTION_SANITIZE builds the CPU module only")
    archs = wanted_archs()
    if archs == ["none"]:
        raise BuildError("ACTION_CUDA_ARCHS is none")
    nvcc, host = find_nvcc(), find_compiler()
    archs = archs or usual_archs(nvcc)
    code = [f"-gencode arch=compute_{arch},code=sm_{arch}" for arch in archs]
    code.append(f"-gencode arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    compiler = f'{nvcc} -ccbin "{host}" -cudart static'
    flags = ["-O3", "-std=c++17", "-Xcompiler -fPIC,-fvisibility=hidden,-Wall", *code]
    return Build(compiler, flags, [Unit(source, f"{Path(source).stem}.o") for source in CUDA.sources], [])


CPU = NativeModule("action_kernels._native", "CPU", "_native_build.txt", ("bindings", "params", "cpu"), plan_cpu)
CUDA = NativeModule("action_kernels._cuda_kernels", "CUDA", "_cuda_build.txt", ("cuda", "params"), plan_cuda)
MODULES = {module.name: module for module in (CPU, CUDA)}
