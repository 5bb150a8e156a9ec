"""``python -m tools.machine_code.triton_kernels``: the Triton backend's kernels, compiled for GPUs without one.

A streaming kernel must take its products on tensor cores (float32 without tf32 has none), fit the chip's shared memory,
and touch no spilled register on its way through the loop. The selection's branch, which takes candidates in and is
passed by where a tile has none, may reload loop constants: counted apart. A gathering kernel has neither products of
tiles nor such a branch, and may not spill anywhere. Exit status 1 if a kernel fails.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Literal

import torch

from ..command import run
from .calls import Call, Gather
from .chips import CHIPS, Chip
from .launches import Compiled, Launch, launches
from .sass import Loop, spilled

SOFTMAXES: list[list[str]] = [[], ["one softmax"], ["softmaxes"]]
TENSOR_CORES = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)")


@dataclass(frozen=True)
class KernelReport:
    """One compiled kernel."""

    chip: str
    kernel: str
    dtype: str
    features: int
    tile: str
    registers: int
    shared: int
    spills: tuple[int, int] | None  # see ``spills_of``
    programs: int
    occupancy: float
    faults: tuple[str, ...]

    HEADER = (
        "| chip | kernel | dtype | D | tile, warps, stages | registers | shared KiB | spills | programs | occupancy |"
    )

    def __str__(self) -> str:
        hot, cold = self.spills or ("?", 0)
        cells = (
            self.chip,
            self.kernel,
            self.dtype,
            self.features,
            self.tile,
            self.registers,
            f"{self.shared / 1024:.0f}",
            f"{hot} ({cold} in the branch)" if cold else hot,
            self.programs,
            f"{self.occupancy:.0%}",
        )
        return f"| {' | '.join(map(str, cells))} |" + "".join(f" FAILS: {fault}" for fault in self.faults)


def check(chip: Chip, call: Call | Gather) -> list[KernelReport]:
    """Compile the call's kernels for the chip."""
    reports = []
    for launch in launches(chip, call):
        try:
            compiled = launch.compile()
        except Exception as error:  # the compiler's own, of any type
            about = chip.name, title(launch), call.kind, call.features, launch.tile
            reports.append(KernelReport(*about, 0, 0, None, 0, 0.0, (str(error),)))
        else:
            reports.append(examine(compiled, call))
    return reports


def examine(compiled: Compiled, call: Call | Gather) -> KernelReport:
    launch, chip = compiled.launch, compiled.launch.chip
    spills = spills_of(compiled)
    faults = faults_of(compiled, call.tensor_cores, spills)
    return KernelReport(
        chip.name,
        title(launch),
        call.kind,
        call.features,
        launch.tile,
        compiled.registers,
        compiled.shared,
        spills,
        compiled.programs,
        compiled.programs * compiled.threads / chip.threads,
        faults,
    )


def spills_of(compiled: Compiled) -> tuple[int, int] | None:
    """Instructions that touch spilled registers: in the loop, and in the selection's branch of it.

    ``None``: a kernel that should have a loop over the rows has none, which only a faulty compiler makes of it.
    """
    if not compiled.launch.streams:
        return spilled(compiled.sass, range(len(compiled.sass))), 0
    try:
        return Loop(compiled.sass).spills()
    except ValueError:
        return None


def faults_of(compiled: Compiled, tensor_cores: bool, spills: tuple[int, int] | None) -> tuple[str, ...]:
    """Why the kernel should not run in this configuration; ``spills``: its ``spills_of``."""
    faults = []
    if spills is None:
        faults.append("there is no loop over the rows")
    elif spills[0]:
        faults.append("spills in the loop")
    if compiled.shared > compiled.launch.chip.shared - 1024 or compiled.programs == 0:
        faults.append("too much shared memory")
    if tensor_cores and not TENSOR_CORES.search(compiled.ptx):
        faults.append("no tensor-core instructions")
    return tuple(faults)


def title(launch: Launch) -> str:
    """The kernel's name, and what it does besides."""
    besides = []
    if launch.name == "bank_pass":
        besides = SOFTMAXES[launch["SIDES"]] + ["maxima"] * (launch["GROUPS"] > 0)
    if launch.name in ("student_grad", "bank_grad"):
        besides = ["one softmax"] * (not launch["PAIR"])
    if launch.name == "student_grad":
        besides += ["verdicts"] * launch["SEARCH"]
    if launch.name in ("bank_pass", "student_grad", "verdicts", "buffered"):
        besides += ["labels"] * launch["LABELLED"]
    return ", ".join([launch.name.replace("_", " "), *besides])


def calls(choice: str) -> list[Call | Gather]:
    """What to compile.

    "some": each kernel for a few numbers of features. "configurations": every configuration that can be chosen, which
    are the same from one power of two to the next, and for both 16-bit types. "all": also float16, and lengths that are
    no multiple of 16 and make another kernel of the same source, with another alignment of its vectors.
    """
    kinds = [(torch.bfloat16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee")]
    features = [64, 128, 256]
    both = {"student_grad": True, "bank_grad": True}
    variants = [both, {**both, "sides": 1}, {"k": 64, "labelled": True, "student_grad": True}]
    if choice != "some":
        features = [16, 32, 64, 128, 256, 512]
        only = {"k": 64, "sides": 0}
        variants += [{"k": 64}, {"k": 64, "student_grad": True}, only, {**only, "labelled": True}]
    if choice == "all":
        kinds += [(torch.float16, "ieee")]
        variants += [{**variant, "queries": 4095, "rows": 8191} for variant in variants]
    gathers = [Gather(dtype, d) for dtype, d in product(dict(kinds), features)]
    return [Call(*kind, d, **variant) for kind, d, variant in product(kinds, features, variants)] + gathers


CHIP = {chip.name: chip for chip in CHIPS}
ChipName = Literal[tuple(CHIP)]


def main(
    choice: Literal["some", "configurations", "all"] = "configurations",
    chips: Sequence[ChipName] = tuple(CHIP),
    jobs: int | None = None,
) -> int:
    """Compile without a GPU, and print what came out.

    Args:
        choice: a few of each kernel; each configuration that can be chosen; also float16 and odd lengths.
        chips: to compile for.
        jobs: compilers at a time; none: one a core.
    """
    failed = 0
    print(KernelReport.HEADER)
    print(re.sub(r"[^|]+", "---", KernelReport.HEADER))
    with ProcessPoolExecutor(jobs or os.cpu_count()) as pool:
        for name in chips:
            for reports in pool.map(partial(check, CHIP[name]), calls(choice)):
                for report in reports:
                    print(report, flush=True)
                    failed += bool(report.faults)
    print(f"{failed} configurations fail" if failed else "every configuration passes")
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
