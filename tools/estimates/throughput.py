"""What a chip can do in a clock, and how many clocks a tile's machine code asks of each of its units.

Sources: the data sheets of NVIDIA A100 80 GB and H100 (SXM: dense tensor rates, memory bandwidth), the white papers on
the A100 and H100 architectures (multiprocessors, the clock behind the tensor rates, lanes, L2: 5120 bytes per clock on
A100), and the table of arithmetic throughput in the CUDA C++ Programming Guide, compute capability 8.0 and 9.0.

Assumptions where no document of NVIDIA's says it: H100's L2 is as wide as A100's; single conversions (F2F, F2I, I2F)
run on the special-function unit, as Nsight Compute's description of the XU pipeline has it, and packed ones with the
integers; `mma.sync` reaches 62.9 % of the tensor rate on H100 (Luo et al., Benchmarking and Dissecting the Nvidia
Hopper GPU Architecture via Microbenchmarking, 2024). Shared memory has no bank conflicts, and no load in which
lanes share words, so that float32 products without tensor cores come out slower than they are; an instruction of the
uniform datapath, of control flow or of global memory costs an issue slot.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields

from ..machine_code.chips import A100, H100, Chip
from ..machine_code.sass import Instruction


@dataclass(frozen=True)
class Rates:
    """A chip's peaks."""

    chip: Chip
    clock: float  # Hz
    tensor: float  # dense flop/s, 16-bit with float32 sums
    tensor_tf32: float
    memory: float  # bytes/s
    l2_size: int  # bytes
    lanes: int  # float32 multiply-adds per clock and multiprocessor
    mma_sync: float  # fraction of the tensor rate that warp-level products reach
    special: int = 16  # exponentials per clock and multiprocessor
    integers: int = 64  # integer, comparison and logic results per clock and multiprocessor
    issue: int = 4  # warp instructions per clock and multiprocessor
    shared: int = 128  # bytes per clock and multiprocessor
    l2: int = 5120  # bytes per clock

    def product_rate(self, precision: str) -> float:
        """flop/s of products: ``16`` bit, ``tf32``, or ``ieee`` without tensor cores."""
        if precision == "ieee":
            return 2 * self.lanes * self.chip.processors * self.clock
        return self.tensor if precision == "16" else self.tensor_tf32

    def per_clock(self, rate: float) -> float:
        """Of a chip's rate, what a multiprocessor does in a clock."""
        return rate / (self.chip.processors * self.clock)


RATES = {
    "A100": Rates(A100, 1.41e9, 312e12, 156e12, 2.039e12, 40 << 20, 64, 1.0),
    "H100": Rates(H100, 1.83e9, 989.4e12, 494.7e12, 3.35e12, 50 << 20, 128, 0.629),
}


@dataclass(frozen=True)
class Clocks:
    """Clocks of a multiprocessor for each of its units; those of different units can overlap."""

    tensor: float = 0.0
    special: float = 0.0
    floats: float = 0.0
    integers: float = 0.0
    issue: float = 0.0
    shared: float = 0.0
    l2: float = 0.0

    def __add__(self, other: Clocks) -> Clocks:
        return Clocks(*(getattr(self, x.name) + getattr(other, x.name) for x in fields(self)))

    def __mul__(self, factor: float) -> Clocks:
        return Clocks(*(factor * getattr(self, x.name) for x in fields(self)))

    @property
    def binding(self) -> str:
        """The unit that needs the most."""
        return max((x.name for x in fields(self)), key=lambda name: getattr(self, name))

    @property
    def overlapped(self) -> float:
        """If all units work at the same time."""
        return getattr(self, self.binding)

    @property
    def serial(self) -> float:
        """If products and everything else take turns."""
        rest = max(getattr(self, x.name) for x in fields(self) if x.name != "tensor")
        return self.tensor + rest


_FLOATS = {"FADD", "FMUL", "FFMA", "FADD32I", "FMUL32I", "FFMA32I"}
_SPECIAL = {"MUFU", "F2F", "F2I", "I2F", "FRND", "POPC"}
_SHARED = {"LDS", "STS", "LDSM", "STSM", "LDGSTS", "SHFL"}
_ISSUE_ONLY = set(
    "BAR BRA BSSY BSYNC CALL CS2R DEPBAR EXIT FENCE LDC LDG LDGDEPBAR LDL MEMBAR NOP R2UR S2R S2UR STG STL "
    "WARPGROUP WARPSYNC YIELD".split()
)


def product_flop(instruction: Instruction) -> tuple[int, bool]:
    """(flop of a tensor-core instruction, whether four warps make it together); (0, False) of any other."""
    if match := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)\.", instruction.name):
        m, n, k = map(int, match.groups())
        return 2 * m * n * k, True
    if match := re.match(r"HMMA\.(16)(8)(\d+)\.", instruction.name):
        m, n, k = map(int, match.groups())
        return 2 * m * n * k, False
    return 0, False


def shared_bytes(instruction: Instruction) -> int:
    """Bytes of shared memory's bandwidth that a warp's instruction takes."""
    name = instruction.name
    if instruction.opcode == "SHFL":
        return 128  # through the same crossbar, 32 lanes a clock
    if instruction.opcode in ("LDSM", "STSM"):  # matrices of 8 rows of 16 bytes
        match = re.search(r"\.M\w*?88\.(\d)", name)
        return 128 * (int(match[1]) if match else 1)
    width = re.search(r"\.(64|128)\b", name)
    return 32 * (int(width[1]) // 8 if width else 4)


def operand_bytes(instruction: Instruction) -> int:
    """Bytes that a warp-group product reads from shared memory: B, and A unless it comes from registers."""
    match = re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)\.", instruction.name)
    if match is None:
        return 0
    m, n, k = map(int, match.groups())
    size = 4 if ".TF32" in instruction.name else 2
    from_registers = re.match(r"\s*R\d+\s*,\s*R\d+", instruction.operands) is not None
    return size * k * (n if from_registers else m + n)


def clocks(rates: Rates, instructions: Counter[Instruction], warps: int, precision: str) -> Clocks:
    """Of a program of ``warps`` warps, all of which go through ``instructions``."""
    tensor = rates.per_clock(rates.product_rate(precision)) if precision != "ieee" else float("inf")
    total = Clocks()
    for instruction, count in instructions.items():
        runs = count * warps
        total += Clocks(issue=runs / rates.issue)
        opcode = instruction.opcode
        flop, together = product_flop(instruction)
        if instruction.never or opcode in _ISSUE_ONLY or opcode.startswith("U"):
            continue
        if flop:
            groups = runs / 4 if together else runs
            rate = tensor * (1 if together else rates.mma_sync)
            total += Clocks(tensor=groups * flop / rate, shared=groups * operand_bytes(instruction) / rates.shared)
        elif opcode in _SHARED:
            total += Clocks(shared=runs * shared_bytes(instruction) / rates.shared)
        elif opcode in _SPECIAL:
            total += Clocks(special=runs * 32 / rates.special)
        elif opcode in _FLOATS:
            total += Clocks(floats=runs * 32 / rates.lanes)
        elif opcode.startswith("IMAD"):
            total += Clocks(floats=runs * 32 / rates.integers)  # on the float lanes that have an integer multiplier
        else:
            total += Clocks(integers=runs * 32 / rates.integers)
    return total


def flop(instructions: Counter[Instruction], warps: int) -> int:
    """Of the tensor-core instructions of a program."""
    total = 0
    for instruction, count in instructions.items():
        each, together = product_flop(instruction)
        total += each * count * warps // (4 if together else 1)
    return total


def merged(parts: Iterable[tuple[Counter[Instruction], int]]) -> Counter[Instruction]:
    """Instruction counts, each times a number."""
    total: Counter[Instruction] = Counter()
    for instructions, times in parts:
        for instruction, count in instructions.items():
            total[instruction] += times * count
    return total
