"""GPUs that kernels are compiled for."""

from __future__ import annotations

from dataclasses import dataclass


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
        by_registers = self.registers // (-(-registers // 8) * 8 * threads)  # allocated in multiples of eight
        return min(by_registers, self.shared // (shared + 1024), self.threads // threads)


A100 = Chip("A100", 80, 164 << 10, 108)
H100 = Chip("H100", 90, 228 << 10, 132)
B200 = Chip("B200", 100, 228 << 10, 148)
CHIPS = (A100, H100, B200)
