"""``python -m tools.machine_code.cuda_kernels``: what is in the CUDA kernels' library, without a GPU.

For every architecture and kernel of ``action_kernels/_cuda_kernels.so``: registers, instructions that touch spilled
ones (there may be none), shared memory, blocks that a multiprocessor holds, what it executes for a pair of rows at
D = 128 in 16 bits (with labels, too, where it compares them), and the tensor-core and asynchronous copy instructions.
Shared memory is what the launcher asks for with rows of ``--features`` features. Exit status 1 if a kernel spills, does
not fit, executes more than its budget, or takes products of 16-bit or tf32 rows without tensor cores.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..command import refuse, run
from .chips import CHIPS, Chip
from .executed import BUDGETS, for_a_pair
from .sass import parse, spilled

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "action_kernels" / "_cuda_kernels.so"
THREADS = 128  # of a streaming kernel's block
MATHS = {"Exact": (4, 0, 0), "Tf32": (4, 0, 1), "Half": (2, 1, 0), "Bfloat": (2, 2, 0)}  # bytes, dtype, tf32
STREAMING = ("bank_pass", "verdicts", "buffered", "student_grad", "bank_grad")


@dataclass(frozen=True)
class Kernel:
    """A kernel in the library, for one architecture."""

    arch: str
    name: str  # without namespaces: bank_pass<Bfloat, true, false>
    registers: int
    static_shared: int
    sass: tuple[str, ...]

    @property
    def spills(self) -> int:
        return spilled(list(self.sass), range(len(self.sass)))

    @property
    def math(self) -> str | None:
        """How it takes products of tiles, if it does."""
        found = re.match(rf"(?:{'|'.join(STREAMING)})<(\w+)", self.name)
        return found[1] if found else None

    @property
    def instructions(self) -> Counter[str]:
        """Matrix products, matrix loads and asynchronous copies."""
        parsed = (parse(line) for line in self.sass)
        names = (x.name for x in parsed if x is not None)
        return Counter(name for name in names if re.match(r"\w*HMMA\.|HGMMA|UTC\w*MMA|LDSM|LDGSTS", name))

    @property
    def for_a_pair(self) -> dict[str, float]:
        """Instructions executed for a pair of rows, by the names of budgets."""
        return for_a_pair(self.name, self.sass)

    @property
    def tensor_cores(self) -> bool:
        return any("MMA." in name for name in self.instructions)

    def shared(self, library: ctypes.CDLL, features: int) -> int:
        """Bytes of a block's shared memory, those that the launcher asks for included."""
        if self.math is None:
            return self.static_shared
        size, dtype, tf32 = MATHS[self.math]
        pitch = -(-features * size // 32) * 32
        flags = [
            word == "true" if word[0] in "tf" else int(word) for word in re.findall(r"true|false|\b\d\b", self.name)
        ]
        if self.name.startswith("bank_pass"):
            asked = library.action_bank_pass_shared(dtype, tf32, ctypes.c_int64(pitch), *flags)
        elif self.name.startswith(("verdicts", "buffered")):
            shared = getattr(library, f"action_{self.name.partition('<')[0]}_shared")
            asked = shared(dtype, tf32, ctypes.c_int64(pitch))
        else:
            for_bank = self.name.startswith("bank_grad<")
            pair, verdicts = flags[0], len(flags) > 1 and flags[1]
            asked = library.action_contrast_gradient_shared(
                for_bank, dtype, tf32, ctypes.c_int64(pitch), pair, verdicts
            )
        return self.static_shared + asked

    def faults(self, chip: Chip, shared: int) -> list[str]:
        found = ["spills"] if self.spills else []
        if shared > chip.shared - 1024:
            found.append("too much shared memory")
        if self.math not in (None, "Exact") and not self.tensor_cores:
            found.append("no tensor-core instructions")
        for name, needed in self.for_a_pair.items():
            if needed > BUDGETS[name]:
                found.append(f"{needed:.2f} instructions a pair for {name}, {BUDGETS[name]} at most")
        return found


def tool(name: str) -> str:
    """Path of CUDA's binary utility, or of the one that comes with Triton; refuses where neither is here."""
    if found := shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin"):
        return found
    try:
        from triton import knobs

        return getattr(knobs.nvidia, name).path
    except (ImportError, AttributeError):
        refuse(f"{name} not found: install the CUDA toolkit's binary utilities or Triton")


def kernels(library: Path = LIBRARY) -> Iterator[Kernel]:
    """Of every architecture that the library has machine code for."""
    nvdisasm = Path(tool("nvdisasm")).parent
    cuobjdump = tool("cuobjdump")

    def dump(option: str) -> str:
        command = [cuobjdump, option, library]
        environment = {"PATH": f"{nvdisasm}:/usr/bin:/bin"}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    usage, code = usage_in(dump("-res-usage")), code_in(dump("-sass"))
    names = readable(sorted({name for _, name in code}))
    for (arch, name), lines in sorted(code.items(), key=lambda item: (int(item[0][0][3:]), names[item[0][1]])):
        yield Kernel(arch, names[name], *usage[arch, name], tuple(lines))


def usage_in(dump: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Registers and bytes of static shared memory by architecture and symbol."""
    usage: dict[tuple[str, str], tuple[int, int]] = {}
    arch = name = ""
    for line in dump.splitlines():
        if found := re.match(r"arch = (\w+)", line):
            arch = found[1]
        elif found := re.match(r"\s*Function (\w+):", line):
            name = found[1]
        elif found := re.search(r"REG:(\d+).*SHARED:(\d+)", line):
            usage[arch, name] = int(found[1]), int(found[2])
    return usage


def code_in(dump: str) -> dict[tuple[str, str], list[str]]:
    """Instructions by architecture and symbol."""
    code: dict[tuple[str, str], list[str]] = {}
    arch = ""
    for line in dump.splitlines():
        if found := re.match(r"arch = (\w+)", line.strip()):
            arch = found[1]
        elif found := re.match(r"\s*Function : (\w+)", line):
            lines = code[arch, found[1]] = []
        elif re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+\S", line):
            lines.append(line)
    return code


def readable(symbols: list[str]) -> dict[str, str]:
    """Names as in the source, without namespaces and arguments."""
    plain = symbols
    if found := shutil.which("c++filt"):
        plain = subprocess.run([found, *symbols], capture_output=True, text=True, check=True).stdout.splitlines()
    short = (re.sub(r"(?:\w+::|\(anonymous namespace\)::)", "", text.removeprefix("void ")) for text in plain)
    return {symbol: text.partition("(")[0] for symbol, text in zip(symbols, short, strict=True)}


HEADER = "| arch | kernel | registers | spills | shared KiB | blocks | a pair | instructions |"


def main(features: int = 128) -> int:
    """Look into the library.

    Args:
        features: of a row, for the shared memory.
    """
    if not LIBRARY.is_file():
        reason = LIBRARY.with_name("_cuda_build.txt")
        why = f": {reason.read_text().strip()}" if reason.is_file() else ""
        refuse(f"{LIBRARY} was not built{why}")
    library = ctypes.CDLL(str(LIBRARY))
    chips = {f"sm_{chip.capability}": chip for chip in CHIPS}
    failed = 0
    print(HEADER)
    print(re.sub(r"[^|]+", "---", HEADER))
    for kernel in kernels():
        chip, shared = chips.get(kernel.arch, CHIPS[0]), kernel.shared(library, features)
        faults = kernel.faults(chip, shared)
        failed += bool(faults)
        held = chip.programs(kernel.registers, shared, THREADS) if kernel.math else ""
        found = ", ".join(f"{count} {name}" for name, count in sorted(kernel.instructions.items()))
        pair = ", ".join(f"{needed:.2f}" for needed in kernel.for_a_pair.values())
        cells = kernel.arch, kernel.name, kernel.registers, kernel.spills, f"{shared / 1024:.1f}", held, pair, found
        print(f"| {' | '.join(map(str, cells))} |" + "".join(f" FAILS: {fault}" for fault in faults))
    print(f"{failed} kernels fail" if failed else "every kernel passes")
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
