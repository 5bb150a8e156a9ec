"""Builds the native modules with ninja. PyTorch is not needed, and a module that cannot be built is left out.

Environment: CXX (compiler), MAX_JOBS (parallel compilations), ACTION_SANITIZE (sanitizers to compile in, such as
``address,undefined``). ``.ci/sanitize`` builds with AddressSanitizer and UndefinedBehaviorSanitizer in a copy of the
checkout and runs the operator tests on that.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
REASON = "_cpu_build.txt"  # beside the package's modules: why there is no native one


@dataclass
class Unit:
    """One compilation: a source and the flags that only it gets."""

    source: str
    object: str
    flags: list[str] = field(default_factory=list)


class BuildError(Exception):
    """Why a native module is left out, in one line."""


def cpu_units() -> list[Unit]:
    """Kernels once per instruction set, everything else once."""
    variants = {"generic": []}
    common = []
    if platform.machine().lower() in ("x86_64", "amd64"):
        common = ["-DACTION_X86"]
        variants["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
        variants["avx512"] = variants["avx2"] + [f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")]
    units = [
        Unit(f"csrc/cpu/{name}.cpp", f"{name}.{isa}.o", [f"-DACTION_ISA={isa}", *flags])
        for isa, flags in variants.items()
        for name in ("contrast", "bank_gradient", "gather", "variant")
    ]
    units += [
        Unit(f"csrc/cpu/{name}.cpp", f"{name}.o", common) for name in ("dispatch", "parallel", "relation", "sort")
    ]
    return [Unit("csrc/bindings/cpu.cpp", "bindings.o", ["-O1"]), *units]


def find_compiler() -> str:
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["c++", "g++", "clang++"]:
        if shutil.which(name.split()[0]):
            return name
    raise BuildError(f"no C++ compiler found ({wanted or 'c++, g++, clang++'})")


def accepts(compiler: str, flags: list[str]) -> bool:
    command = [*compiler.split(), *flags, "-x", "c++", "-", "-o", os.devnull]
    return subprocess.run(command, input=b"int main() {}", capture_output=True).returncode == 0


def find_ninja() -> str:
    try:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        found = shutil.which("ninja")
        if found:
            return found
        raise BuildError("ninja is not installed") from None


class NinjaBuild(build_ext):
    """Compiles an extension's units in parallel; a failure is remembered in one line and the installation goes on.

    A further native module (CUDA, where nvcc is found) is a further extension with units of its own.
    """

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        reasons = {target.parent / REASON, ROOT.resolve() / "action_kernels" / REASON}  # installed, and editable
        for path in reasons:
            path.unlink(missing_ok=True)
        try:
            self.compile(target)
        except BuildError as error:
            for path in reasons:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{error}\n")
            print(f"action_kernels: native CPU module left out: {error}", file=sys.stderr)

    def compile(self, target: Path) -> None:
        import pybind11

        compiler, ninja = find_compiler(), find_ninja()
        openmp = next((f for f in (["-fopenmp"], ["-Xpreprocessor", "-fopenmp", "-lomp"]) if accepts(compiler, f)), [])
        link = [*openmp] + (["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])
        flags = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]
        flags += ["-Wall", "-Wno-unknown-pragmas", "-Wno-psabi", *[f for f in openmp if f != "-lomp"]]
        sanitizers = os.environ.get("ACTION_SANITIZE")
        if sanitizers:
            extra = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
            flags, link = flags + extra, link + extra
        includes = [pybind11.get_include(), sysconfig.get_path("include")]

        work = Path(self.build_temp).resolve() / "cpu"
        work.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        units = cpu_units()
        lines = [
            "rule compile",
            f"  command = {compiler} -MMD -MF $out.d {' '.join(flags)} $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {compiler} -shared $in -o $out {' '.join(link)}",
        ]
        for unit in units:
            own = unit.flags + ([f"-isystem {quote(i)}" for i in includes] if "bindings" in unit.source else [])
            lines += [
                f"build {unit.object}: compile {escape(ROOT.resolve() / unit.source)}",
                f"  flags = {' '.join(own)}",
            ]
        lines += [f"build {escape(target)}: link {' '.join(unit.object for unit in units)}", ""]
        (work / "build.ninja").write_text("\n".join(lines))

        jobs = os.environ.get("MAX_JOBS")
        run = subprocess.run([ninja, *(["-j", jobs] if jobs else [])], cwd=work, capture_output=True, text=True)
        if run.returncode:
            print(run.stdout, run.stderr, file=sys.stderr)
            errors = [line for line in run.stdout.splitlines() if "error" in line.lower()]
            raise BuildError(f"{compiler} failed: {errors[0] if errors else run.stdout.strip().splitlines()[-1]}")


def escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def quote(path: str) -> str:
    return f'"{path}"'


setup(
    ext_modules=[Extension("action_kernels._cpu", sources=[], optional=True)],
    cmdclass={"build_ext": NinjaBuild},
)
