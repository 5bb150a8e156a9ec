"""The Triton backend's kernels, launched on tensors without data and compiled for GPUs that may not be there.

The backend's own functions run, and every launch of a kernel that streams a bank or gathers from it is recorded with
its grid and its arguments instead of being made. A recorded launch compiles for any chip that Triton knows.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .calls import Call, Gather
from .chips import Chip

if TYPE_CHECKING:
    from triton.backends.compiler import GPUTarget

STREAMING = ("_bank_pass", "_student_grad", "_bank_grad", "_verdicts", "_buffered")
GATHERING = ("_info_nce", "_info_nce_grad", "_query_grad", "_indexed_bank_grad")


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
        """Compile the kernel for the launch's chip."""
        from triton.runtime import driver

        driver.set_active(NoDevice(self.chip))
        try:
            kernel = self.function.warmup(*self.arguments, grid=self.grid, **self.options)
        finally:
            driver.set_active(None)  # whoever asks next gets this machine's own
        return Compiled(self, kernel)


@dataclass(frozen=True)
class NoDevice:
    """As much of a driver of Triton's as compiling for a chip needs."""

    chip: Chip

    def get_current_target(self) -> GPUTarget:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.chip.capability, 32)

    def get_current_device(self) -> int:
        return self.chip.capability

    def get_current_stream(self, device: int) -> int:
        return 0


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
    from action_kernels.backends.triton.launch import Target, aimed_at

    launches: list[Launch] = []

    def record(function: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        if function.__name__ in STREAMING + GATHERING:
            launches.append(Launch(function, arguments, grid, options, chip))

    with aimed_at(Target(chip.capability, chip.processors, precision, record)):
        yield launches


def launches(chip: Chip, call: Call | Gather) -> list[Launch]:
    """What the call launches on the chip, of the kernels that stream or gather."""
    with recorded(chip, call.precision) as found:
        call.run()
    return found
