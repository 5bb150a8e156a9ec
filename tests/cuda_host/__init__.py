"""Runs CUDA kernels on the host: compiles unmodified .cu files with g++ and executes each block's threads as fibers.

The library has the same launchers as the CUDA one, and takes CPU tensors. Every load, store, barrier and warp operation
is checked; a launch in which something is wrong fails with 719 (``cudaErrorLaunchFailure``), and ``cudaGetErrorString``
says what, where in the source, and which kernel, block and thread. README.md says how it works.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from action_kernels.backends import native

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

# Kernels call the harness before each load and store and where behaviour is undefined. -fno-strict-aliasing: nvcc's
# kernels view memory through other types. Multiply-adds are fused wherever nvcc would: what is rounded in one pass and
# not in another shows here, too.
KERNEL_FLAGS = [
    "-fsanitize=thread,alignment,bounds,signed-integer-overflow,shift-exponent,integer-divide-by-zero",
    "-fno-sanitize=null",
    "--param=tsan-instrument-func-entry-exit=0",
    "-fno-extern-tls-init",
    "-fno-strict-aliasing",
    "-ffp-contract=fast",
    *(["-mfma"] if platform.machine() == "x86_64" and torch.backends.cpu.get_cpu_capability() != "DEFAULT" else []),
    "-Wno-unknown-pragmas",
    "-Wno-attributes",
]
COMMON_FLAGS = ["-std=c++20", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-fno-exceptions"]


def missing() -> str | None:
    """Why the harness cannot be built here, or None."""
    if sys.platform != "linux":
        return "needs Linux"
    absent = [tool for tool in ("g++", "readelf", "addr2line") if not shutil.which(tool)]
    if not _ninja():
        absent.append("ninja")
    if absent:
        return f"needs {', '.join(absent)}"
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True).stdout.split(".")[0]
    return None if int(version or 0) >= 11 else f"needs g++ 11, this is {version}"


def _ninja() -> str | None:
    try:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        return shutil.which("ninja")


def build(sources: Sequence[Path] | None = None, flags: Sequence[str] = ()) -> Path:
    """The library of ``sources`` (default: csrc/cuda/*.cu), compiled for the host; up to date, and quick if it was.

    The checks of launchers (csrc/params/*.cpp) always come with them.

    Raises:
        RuntimeError: a source does not compile; the message is the compiler's.
    """
    chosen = sorted(sources if sources is not None else (ROOT / "csrc/cuda").glob("*.cu"))
    chosen += sorted((ROOT / "csrc/params").glob("*.cpp"))  # what every launcher calls
    key = hashlib.sha256("\0".join([*map(str, chosen), *flags]).encode()).hexdigest()[:12]
    folder = ROOT / "build" / "cuda_host" / key
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libaction_cuda_host.so"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = _ninja_file(chosen, list(flags), library)
        plan = folder / "build.ninja"
        if not plan.exists() or plan.read_text() != text:
            plan.write_text(text)
        jobs = os.environ.get("MAX_JOBS")
        command = [_ninja() or "ninja", *(["-j", jobs] if jobs else [])]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"the kernels do not compile for the host:\n{run.stdout}{run.stderr}")
    return library


def _ninja_file(sources: list[Path], flags: list[str], library: Path) -> str:
    common = " ".join([*COMMON_FLAGS, f"-I{HERE}/include", f"-I{ROOT}/csrc/cuda"])
    kernel = " ".join(["-x c++", f"-include {HERE}/cuda_host.h", *KERNEL_FLAGS, *flags])
    lines = [
        "rule compile",
        f"  command = g++ -MMD -MF $out.d {common} $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule shared",
        f"  command = {sys.executable} {HERE}/dynamic_shared.py $out $in",
        "rule link",
        "  command = g++ -shared -Wl,-Bsymbolic -Wl,-z,defs $in -o $out -ldl",
    ]
    kernels = []
    for number, source in enumerate(sources):
        kernels.append(f"{source.stem}.{number}.o")
        lines += [f"build {kernels[-1]}: compile {source}", f"  flags = {kernel}"]
    runtime = []
    for source in sorted((HERE / "runtime").glob("*.cpp")):
        runtime.append(f"{source.stem}.runtime.o")
        lines += [f"build {runtime[-1]}: compile {source}"]
    lines += [
        f"build shared.s: shared {' '.join(kernels)} | {HERE}/dynamic_shared.py",
        f"build {library.name}: link {' '.join([*kernels, *runtime, 'shared.s'])}",
        "",
    ]
    return "\n".join(lines)


class Harness:
    """The harness's own functions in a library of :func:`build`."""

    def __init__(self, library: Path | str) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.cuda_host_register.argtypes = [ctypes.c_void_p, ctypes.c_size_t] * 2
        self.library.cuda_host_report.restype = ctypes.c_char_p

    def register(self, tensor: torch.Tensor) -> None:
        """Lets kernels access what the tensor's view spans, and no memory that was never registered."""
        if tensor.device.type != "cpu" or not tensor.numel():
            return
        item = tensor.element_size()
        steps = [(n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)]
        begin = _data_ptr(tensor) + sum(s for s in steps if s < 0) * item
        span = (sum(map(abs, steps)) + 1) * item
        storage = tensor.untyped_storage()
        self.library.cuda_host_register(begin, span, storage.data_ptr(), storage.nbytes())

    def forget(self, strict: bool) -> None:
        self.library.cuda_host_forget(int(strict))

    def report(self) -> str:
        """What the last failed launch found."""
        return self.library.cuda_host_report().decode()


_data_ptr = torch.Tensor.data_ptr


@contextmanager
def checked(library: Path | str) -> Iterator[Harness]:
    """Inside, kernels of ``library`` may access only tensors whose ``data_ptr()`` has been asked for, and fresh memory
    from ``torch.empty`` is NaN (the largest integer), so that a kernel that leaves a hole in its output shows."""
    harness = Harness(library)

    def data_ptr(tensor: torch.Tensor) -> int:
        harness.register(tensor)
        return _data_ptr(tensor)

    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    plain = torch.Tensor.data_ptr
    harness.forget(strict=True)
    torch.Tensor.data_ptr = data_ptr
    border = native.module()
    if not isinstance(border, str):
        border.read_attributes_only(True)  # so that the border asks for it, too
    torch.use_deterministic_algorithms(True, warn_only=True)  # what fills fresh memory
    try:
        yield harness
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.Tensor.data_ptr = plain
        if not isinstance(border, str):
            border.read_attributes_only(False)
        harness.forget(strict=False)
