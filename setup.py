"""Builds the native modules with ninja. PyTorch is not needed, and a module that cannot be built is left out.

Environment: CXX (compiler), MAX_JOBS (parallel compilations), ACTION_CUDA_ARCHS (GPU architectures such as ``90`` or
``80 90``, the last one also as PTX for later ones; ``none`` leaves the CUDA module out), CUDA_HOME, ACTION_SANITIZE
(sanitizers to compile into the CPU module, such as ``address,undefined``; no CUDA module then). ``.ci/sanitize`` builds
with AddressSanitizer and UndefinedBehaviorSanitizer in a copy of the checkout and runs the operator tests on that.
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
REASONS = {  # beside the package's modules: why there is no native one
    "action_kernels._cpu": ("CPU", "_cpu_build.txt"),
    "action_kernels._cuda_kernels": ("CUDA", "_cuda_build.txt"),
}
CUDA_ARCHS = ("80", "90", "100")


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


def cuda_units() -> list[Unit]:
    return [Unit(str(path.relative_to(ROOT)), f"{path.stem}.o") for path in sorted(ROOT.glob("csrc/cuda/*.cu"))]


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


def find_nvcc() -> str:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(f"{home}/bin" for home in homes if home))
    if not found:
        raise BuildError("nvcc not found (in PATH, CUDA_HOME, /usr/local/cuda)")
    return found


def wanted_archs() -> list[str]:
    """What ACTION_CUDA_ARCHS asks for, such as 80 and 90 for ``sm_80;9.0``."""
    names = os.environ.get("ACTION_CUDA_ARCHS", "").replace(",", " ").replace(";", " ").split()
    return [name.removeprefix("sm_").replace(".", "") for name in names]


def usual_archs(nvcc: str) -> list[str]:
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    archs = [arch for arch in CUDA_ARCHS if f"sm_{arch}" in known]
    if not archs:
        raise BuildError(f"{nvcc} knows none of the architectures {', '.join(CUDA_ARCHS)}")
    return archs


class NinjaBuild(build_ext):
    """Compiles an extension's units in parallel; a failure is remembered in one line and the installation goes on."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        title, file = REASONS[ext.name]
        reasons = {target.parent / file, ROOT.resolve() / "action_kernels" / file}  # installed, and editable
        for path in reasons:
            path.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.compile_cpu(target) if title == "CPU" else self.compile_cuda(target)
        except BuildError as error:
            for path in reasons:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{error}\n")
            print(f"action_kernels: native {title} module left out: {error}", file=sys.stderr)

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.endswith("_cuda_kernels"):  # loaded by ctypes, with no part of Python in it
            return str(Path(*fullname.split(".")).with_suffix(".so"))
        return super().get_ext_filename(fullname)

    def compile_cpu(self, target: Path) -> None:
        import pybind11

        compiler = find_compiler()
        openmp = next((f for f in (["-fopenmp"], ["-Xpreprocessor", "-fopenmp", "-lomp"]) if accepts(compiler, f)), [])
        link = [*openmp] + (["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])
        flags = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]
        flags += ["-Wall", "-Wno-unknown-pragmas", "-Wno-psabi", *[f for f in openmp if f != "-lomp"]]
        sanitizers = os.environ.get("ACTION_SANITIZE")
        if sanitizers:
            extra = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
            flags, link = flags + extra, link + extra
        units = cpu_units()
        for unit in units:
            if "bindings" in unit.source:
                unit.flags += [f"-isystem {quote(i)}" for i in (pybind11.get_include(), sysconfig.get_path("include"))]
        self.run_ninja(compiler, flags, units, link, target)

    def compile_cuda(self, target: Path) -> None:
        if os.environ.get("ACTION_SANITIZE"):
            raise BuildError("ACTION_SANITIZE builds the CPU module only")
        archs = wanted_archs()
        if archs == ["none"]:
            raise BuildError("ACTION_CUDA_ARCHS is none")
        nvcc, host = find_nvcc(), find_compiler()
        archs = archs or usual_archs(nvcc)
        code = [f"-gencode arch=compute_{arch},code=sm_{arch}" for arch in archs]
        code.append(f"-gencode arch=compute_{archs[-1]},code=compute_{archs[-1]}")
        compiler = f"{nvcc} -ccbin {quote(host)} -cudart static"
        flags = ["-O3", "-std=c++17", "-Xcompiler -fPIC,-fvisibility=hidden,-Wall", *code]
        self.run_ninja(compiler, flags, cuda_units(), [], target)

    def run_ninja(self, compiler: str, flags: list[str], units: list[Unit], link: list[str], target: Path) -> None:
        work = Path(self.build_temp).resolve() / target.name.split(".")[0]
        work.mkdir(parents=True, exist_ok=True)
        lines = [
            "rule compile",
            f"  command = {compiler} -MMD -MF $out.d {' '.join(flags)} $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {compiler} -shared $in -o $out {' '.join(link)}",
        ]
        for unit in units:
            lines += [
                f"build {unit.object}: compile {escape(ROOT.resolve() / unit.source)}",
                f"  flags = {' '.join(unit.flags)}",
            ]
        lines += [f"build {escape(target)}: link {' '.join(unit.object for unit in units)}", ""]
        (work / "build.ninja").write_text("\n".join(lines))

        jobs = os.environ.get("MAX_JOBS")
        command = [find_ninja(), *(["-j", jobs] if jobs else [])]
        run = subprocess.run(command, cwd=work, capture_output=True, text=True)
        if run.returncode:
            print(run.stdout, run.stderr, file=sys.stderr)
            errors = [line for line in run.stdout.splitlines() if "error" in line.lower()]
            raise BuildError(f"{compiler} failed: {errors[0] if errors else run.stdout.strip().splitlines()[-1]}")


def escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def quote(path: str) -> str:
    return f'"{path}"'


setup(
    ext_modules=[Extension(name, sources=[], optional=True) for name in REASONS if "_cpu" in name or cuda_units()],
    cmdclass={"build_ext": NinjaBuild},
)
