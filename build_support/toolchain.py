"""The compilers and ninja: where they are, and what they can do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

CUDA_ARCHS = ("80", "90", "100")


class BuildError(Exception):
    """Why a native module is left out, in one line."""


def find_compiler() -> str:
    """The C++ compiler's command.

    Raises:
        BuildError: there is none.
    """
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["c++", "g++", "clang++"]:
        if shutil.which(name.split()[0]):
            return name
    raise BuildError(f"no C++ compiler found ({wanted or 'c++, g++, clang++'})")


def has_openmp(compiler: str, flags: list[str]) -> bool:
    """Whether the compiler finds OpenMP's header and library with these flags."""
    program = b"#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }"
    with TemporaryDirectory() as folder:
        command = [*compiler.split(), *flags, "-x", "c++", "-", "-o", f"{folder}/program"]
        return subprocess.run(command, input=program, capture_output=True).returncode == 0


def find_ninja() -> str:
    """Path of ninja, the Python package's or the system's.

    Raises:
        BuildError: there is none.
    """
    try:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        found = shutil.which("ninja")
        if found:
            return found
        raise BuildError("ninja is not installed") from None


def find_nvcc() -> str:
    """Path of CUDA's compiler.

    Raises:
        BuildError: there is none.
    """
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
    """The architectures to build for unless told otherwise, as far as this nvcc knows them.

    Raises:
        BuildError: it knows none of them.
    """
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    archs = [arch for arch in CUDA_ARCHS if f"sm_{arch}" in known]
    if not archs:
        raise BuildError(f"{nvcc} knows none of the architectures {', '.join(CUDA_ARCHS)}")
    return archs
