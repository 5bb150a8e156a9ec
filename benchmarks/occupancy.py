"""``python -m benchmarks.occupancy``: the Triton backend's streaming kernels, compiled for GPUs that need not be there.

The backend's functions run on tensors without data, and every streaming kernel that they would launch is compiled with
the arguments of that launch. It must take its products on tensor cores (float32 without tf32 has none), fit the chip's
shared memory, and touch no spilled register on its way through the loop. The selection's branch, which takes candidates
in and is passed by where a tile has none, may reload loop constants: counted apart. Exit status 1 if one fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch

STREAMING = ("_scan", "_direction", "_bank_gradient")
TENSOR_CORES = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)")


@dataclass(frozen=True)
class Chip:
    """What a multiprocessor has (CUDA C++ Programming Guide, technical specifications per compute capability)."""

    name: str
    capability: int
    shared: int  # bytes; a program can have all but one KiB, and the system takes one for each
    registers: int = 65536
    threads: int = 2048

    def programs(self, registers: int, shared: int, threads: int) -> int:
        """Programs that are resident at a time."""
        by_registers = self.registers // (-(-registers // 8) * 8 * threads)  # given out by eights
        return min(by_registers, self.shared // (shared + 1024), self.threads // threads)


CHIPS = (Chip("A100", 80, 164 << 10), Chip("H100", 90, 228 << 10), Chip("B200", 100, 228 << 10))


@dataclass(frozen=True)
class Problem:
    """A call whose kernels are compiled."""

    dtype: torch.dtype
    precision: str  # of float32 products
    features: int
    k: int = 0
    labelled: bool = False
    distill: bool = True

    def run(self) -> None:
        from action_kernels.backends import triton

        groups, queries, rows = 2, 4096, 8192
        student, teacher, bank = (
            torch.empty(groups, n, self.features, dtype=self.dtype, device="meta") for n in (queries, queries, rows)
        )
        labels = [torch.empty(groups, n, dtype=torch.int64, device="meta") for n in (queries, rows)]
        if not self.labelled:
            labels = [None, None]
        if not self.distill:
            triton.hard_negatives(student, bank, self.k, *labels, True)
            return
        temps = 0.1, 0.05
        result = triton.action_contrast(student, teacher, bank, self.k, *temps, *labels, True, self.k == 0)
        if self.k == 0:
            triton.contrast_bank_gradient(result.kl, student, teacher, bank, *result[:3], *temps, True)


@dataclass(frozen=True)
class Row:
    """One compiled kernel."""

    chip: str
    kernel: str
    dtype: str
    features: int
    tile: str
    registers: int
    shared: int
    spills: tuple[int, int]  # instructions in the loop, in the selection's branch of it
    programs: int
    occupancy: float
    faults: tuple[str, ...]

    HEADER = (
        "| chip | kernel | dtype | D | tile, warps, stages | registers | shared KiB | spills | programs | occupancy |"
    )

    def __str__(self) -> str:
        hot, cold = self.spills
        cells = (
            self.chip, self.kernel, self.dtype, self.features, self.tile, self.registers, f"{self.shared / 1024:.0f}",
            f"{hot} ({cold} in the branch)" if cold else hot, self.programs, f"{self.occupancy:.0%}",
        )  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |" + "".join(f" FAILS: {fault}" for fault in self.faults)


def check(chip: Chip, problem: Problem) -> list[Row]:
    """Compile the problem's streaming kernels for the chip."""
    rows = []
    with compiled_only(chip, problem.precision) as kernels:
        problem.run()
    for kernel, options in kernels:
        name = kernel.metadata.name.removeprefix("_")
        if name == "scan" and problem.k:
            name += " + selection" if problem.distill else ", selection only"
            name += ", labels" if problem.labelled else ""
        registers, sass = _disassembled(kernel.asm["cubin"])
        spills = _spills(sass)
        shared, threads = kernel.metadata.shared, 32 * kernel.metadata.num_warps
        programs = chip.programs(registers, shared, threads)
        faults = []
        if spills[0]:
            faults.append("spills in the loop")
        if shared > chip.shared - 1024 or programs == 0:
            faults.append("too much shared memory")
        exact = problem.dtype == torch.float32 and problem.precision == "ieee"
        if not exact and not TENSOR_CORES.search(kernel.asm["ptx"]):
            faults.append("no tensor-core instructions")
        tile = f"{options['BLOCK_N']}x{options['BLOCK_M']}x{options['WIDTH']}, {options['num_warps']}, "
        dtype = str(problem.dtype).removeprefix("torch.")
        rows.append(
            Row(
                chip.name,
                name,
                f"{dtype} ({problem.precision})" if dtype == "float32" else dtype,
                problem.features,
                tile + str(options["num_stages"]),
                registers,
                shared,
                spills,
                programs,
                programs * threads / chip.threads,
                tuple(faults),
            )  # fmt: skip
        )
    return rows


@contextmanager
def compiled_only(chip: Chip, precision: str) -> Iterator[list[tuple]]:
    """Launches inside the ``with`` block compile for ``chip`` instead: (compiled kernel, launch options) of each."""
    import importlib

    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class NoDevice:
        """As much of a driver as compiling needs."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", chip.capability, 32)

        def get_current_device(self) -> int:
            return chip.capability

        def get_current_stream(self, device: int) -> int:
            return 0

    kernels: list[tuple] = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        if self.fn.__name__ in STREAMING:
            kernels.append((run(self, *args, grid=grid, warmup=True, **options), options))

    names = ("tiles", "scan", "gradients")
    modules = [importlib.import_module(f"action_kernels.backends.triton.{name}") for name in names]
    for module in modules:
        module.float32_precision = lambda: precision
    modules[0].capability = lambda device: chip.capability
    driver.set_active(NoDevice())
    JITFunction.run = compile_only
    try:
        yield kernels
    finally:
        JITFunction.run = run


def _disassembled(cubin: bytes) -> tuple[int, list[str]]:
    """(registers per thread, instructions and labels) of a binary."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        texts = [
            subprocess.run([tool.path, *options, file.name], capture_output=True, text=True, check=True).stdout
            for tool, options in ((knobs.nvidia.cuobjdump, ["-res-usage"]), (knobs.nvidia.nvdisasm, ["-c"]))
        ]
    registers = max(int(n) for n in re.findall(r"REG:(\d+)", texts[0]))
    return registers, texts[1].splitlines()


def _spills(sass: list[str]) -> tuple[int, int]:
    """Instructions that touch spilled registers in the loop over the rows: on the way through it, in its call branch.

    The loop is the smallest one with both a product and what is made of it, exponentials or a call of the selection.
    """
    labels = {line.strip()[:-1]: i for i, line in enumerate(sass) if re.match(r"\.L_\w+:", line.strip())}
    jumps = [
        (i, labels.get(m[1], i)) for i, line in enumerate(sass) if (m := re.search(r"\bBRA.*`\((\.L_\w+)\)", line))
    ]

    def has(pattern: str, start: int, stop: int) -> bool:
        return any(re.search(pattern, line) for line in sass[start:stop])

    loops = [(target, i) for i, target in jumps if target < i]
    loops = [x for x in loops if has(r"MMA|FFMA", *x) and (has(r"MUFU\.EX2", *x) or has(r"\bCALL", *x))]
    start, stop = min(loops, key=lambda x: x[1] - x[0])
    branch = {
        line
        for i, target in jumps
        if start <= i < target <= stop and has(r"\bCALL", i, target)
        for line in range(i, target)
    }
    touched = [i for i in range(start, stop) if re.search(r"\b(STL|LDL)\b", sass[i])]
    return sum(i not in branch for i in touched), sum(i in branch for i in touched)


def problems(everything: bool) -> list[Problem]:
    """What can be asked for. One of float16 and bfloat16 stands for both, unless everything is wanted."""
    kinds = [(torch.bfloat16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee")]
    features = [64, 128, 256]
    calls = [{}, {"k": 64, "labelled": True}]
    if everything:
        kinds += [(torch.float16, "ieee")]
        features += [16, 32, 192, 512]
        calls += [{"k": 64}, {"k": 64, "distill": False}, {"k": 64, "distill": False, "labelled": True}]
    return [Problem(*kind, d, **call) for kind, d, call in product(kinds, features, calls)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.occupancy", description="Compile without a GPU.")
    parser.add_argument("--all", action="store_true", help="every dtype, width and variant, which takes minutes")
    parser.add_argument("--chips", nargs="+", default=[c.name for c in CHIPS], choices=[c.name for c in CHIPS])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time")
    arguments = parser.parse_args()
    failed = 0
    print(Row.HEADER)
    print(re.sub(r"[^|]+", "---", Row.HEADER))
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for chip in (c for c in CHIPS if c.name in arguments.chips):
            for rows in pool.map(partial(check, chip), problems(arguments.all)):
                for row in rows:
                    print(row, flush=True)
                    failed += bool(row.faults)
    print(f"{failed} configurations fail" if failed else "every configuration passes")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
