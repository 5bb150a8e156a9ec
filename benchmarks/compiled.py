"""The Triton backend's kernels, launched on tensors without data and compiled for GPUs that may not be there.

The backend's own functions run, and every launch of a kernel that streams a bank or gathers from it is recorded with
its grid and its arguments instead of being made. A recorded launch compiles for any chip that Triton knows.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from unittest import mock

import torch

STREAMING = ("_scan", "_direction", "_bank_gradient")
GATHERING = ("_info_nce", "_gather_gradient", "_scatter_gradient")


@dataclass(frozen=True)
class Chip:
    """What a multiprocessor has (CUDA C++ Programming Guide, technical specifications per compute capability)."""

    name: str
    capability: int
    shared: int  # bytes; a program can have all but one KiB, and the system takes one for each
    processors: int  # multiprocessors of the SXM module
    registers: int = 65536
    threads: int = 2048

    def programs(self, registers: int, shared: int, threads: int) -> int:
        """Programs that are resident at a time."""
        by_registers = self.registers // (-(-registers // 8) * 8 * threads)  # given out by eights
        return min(by_registers, self.shared // (shared + 1024), self.threads // threads)


A100 = Chip("A100", 80, 164 << 10, 108)
H100 = Chip("H100", 90, 228 << 10, 132)
B200 = Chip("B200", 100, 228 << 10, 148)
CHIPS = (A100, H100, B200)


@dataclass(frozen=True)
class Call:
    """A call of the backend. Without ``distill`` it is a selection alone."""

    dtype: torch.dtype
    precision: str  # of float32 products
    features: int
    k: int = 0
    labelled: bool = False
    distill: bool = True
    gradient: bool = False  # the student's
    bank_gradient: bool = False
    groups: int = 2
    queries: int = 4096
    rows: int = 8192

    @property
    def kind(self) -> str:
        """The dtype, and how float32 products are taken."""
        name = str(self.dtype).removeprefix("torch.")
        return f"{name} ({self.precision})" if self.dtype == torch.float32 else name

    @property
    def tensor_cores(self) -> bool:
        return not (self.dtype == torch.float32 and self.precision == "ieee")

    def inputs(self, device: str = "meta") -> list[torch.Tensor | None]:
        """Student, teacher, bank and the labels of queries and bank; random numbers, unless they have no data."""

        def rows(n: int) -> torch.Tensor:
            shape = self.groups, n, self.features
            return torch.randn(shape, device=device).to(self.dtype)

        def labels(n: int) -> torch.Tensor | None:
            return torch.randint(4, (self.groups, n), device=device) if self.labelled else None

        return [*map(rows, (self.queries, self.queries, self.rows)), *map(labels, (self.queries, self.rows))]

    def run(self, inputs: list[torch.Tensor | None] | None = None) -> tuple[torch.Tensor, ...]:
        """All results."""
        from action_kernels.backends import triton

        student, teacher, bank, *labels = inputs or self.inputs()
        if not self.distill:
            return triton.hard_negatives(student, bank, self.k, *labels, True)
        temps = 0.1, 0.05
        result = triton.action_contrast(student, teacher, bank, self.k, *temps, *labels, True, self.gradient)
        if not self.bank_gradient:
            return result
        return *result, triton.contrast_bank_gradient(result.kl, student, teacher, bank, *result[:3], *temps, True)


@dataclass(frozen=True)
class Gather:
    """A call for what an index names: InfoNCE and its gradients in query, positive and bank."""

    dtype: torch.dtype
    features: int
    k: int = 512
    groups: int = 2
    queries: int = 1024
    rows: int = 8192
    precision: str = "ieee"
    tensor_cores: bool = False  # every query has rows of its own

    @property
    def kind(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def run(self) -> None:
        from action_kernels.backends.triton import gather

        def empty(*size: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(self.groups, *size, dtype=dtype, device="meta")

        query, positive = (empty(self.queries, self.features, dtype=self.dtype) for _ in range(2))
        bank = empty(self.rows, self.features, dtype=self.dtype)
        index = empty(self.queries, self.k, dtype=torch.int64)
        loss, lse = gather.info_nce(query, positive, bank, index, 0.5, True)
        gather.info_nce_gradient(loss, query, positive, bank, index, lse, 0.5, True, True, True, True)


@dataclass
class Launch:
    """A launch that was recorded."""

    function: Any
    arguments: tuple[Any, ...]
    grid: tuple[int, ...]
    options: dict[str, Any]
    chip: Chip

    @property
    def name(self) -> str:
        return self.function.fn.__name__.removeprefix("_")

    def __getitem__(self, argument: str) -> Any:
        if argument in self.options:
            return self.options[argument]
        return self.arguments[self.function.arg_names.index(argument)]

    @property
    def tile(self) -> str:
        names = ["BLOCK_N", "BLOCK_M", "WIDTH"]
        if not self.streams:
            names = [name for name in self.function.arg_names if name.startswith("BLOCK_")]
        sizes = "x".join(str(self[name]) for name in names)
        return f"{sizes}, {self.options.get('num_warps', 4)}, {self.options.get('num_stages', 3)}"

    @property
    def streams(self) -> bool:
        return self.function.fn.__name__ in STREAMING

    def compile(self) -> Compiled:
        from triton.backends.compiler import GPUTarget
        from triton.runtime import driver
        from triton.runtime.jit import JITFunction

        chip = self.chip

        class NoDevice:
            """As much of a driver as compiling needs."""

            def get_current_target(self) -> GPUTarget:
                return GPUTarget("cuda", chip.capability, 32)

            def get_current_device(self) -> int:
                return chip.capability

            def get_current_stream(self, device: int) -> int:
                return 0

        with mock.patch.object(driver, "_active", NoDevice()):
            kernel = JITFunction.run(self.function, *self.arguments, grid=self.grid, warmup=True, **self.options)
        return Compiled(self, kernel)


@dataclass
class Compiled:
    """A compiled kernel, and the launch that it is for."""

    launch: Launch
    kernel: Any

    @property
    def shared(self) -> int:
        return self.kernel.metadata.shared

    @property
    def threads(self) -> int:
        return 32 * self.kernel.metadata.num_warps

    @property
    def ptx(self) -> str:
        return self.kernel.asm["ptx"]

    @cached_property
    def registers(self) -> int:
        """Per thread."""
        return max(int(n) for n in re.findall(r"REG:(\d+)", self._tool("cuobjdump", "-res-usage")))

    @cached_property
    def sass(self) -> list[str]:
        """Instructions and labels."""
        return self._tool("nvdisasm", "-c").splitlines()

    @property
    def programs(self) -> int:
        """Resident on a multiprocessor at a time."""
        return self.launch.chip.programs(self.registers, self.shared, self.threads)

    def _tool(self, name: str, option: str) -> str:
        from triton import knobs

        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.kernel.asm["cubin"])
            file.flush()
            command = [getattr(knobs.nvidia, name).path, option, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextmanager
def recorded(chip: Chip, precision: str) -> Iterator[list[Launch]]:
    """Launches inside the ``with`` block are what they would be on ``chip``; what streams or gathers is kept."""
    from triton.runtime.jit import JITFunction

    launches: list[Launch] = []

    def record(self: Any, *arguments: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        if self.fn.__name__ in STREAMING + GATHERING:
            launches.append(Launch(self, arguments, grid, options, chip))

    answers = {
        "float32_precision": lambda: precision,
        "capability": lambda device: chip.capability,
        "processors": lambda device: chip.processors,
    }
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(JITFunction, "run", record))
        for name in ("launch", "tiles", "scan", "gradients"):
            module = importlib.import_module(f"action_kernels.backends.triton.{name}")
            for function, answer in answers.items():
                if hasattr(module, function):
                    stack.enter_context(mock.patch.object(module, function, answer))
        yield launches


def launches(chip: Chip, call: Call | Gather) -> list[Launch]:
    """What the call launches on the chip, of the kernels that stream or gather."""
    with recorded(chip, call.precision) as found:
        call.run()
    return found
