"""Time of ``contrastive_distillation`` against plain PyTorch: ``python -m benchmarks.kernels``.

Both compute forward and backward in one process, in turn (A B A B ...); the table has the medians and the median of the
ratios of neighbouring runs, which a noisy machine disturbs least.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor

from action_kernels import contrastive_distillation, use_backend

STUDENT_TEMP, TEACHER_TEMP = 0.1, 0.01


def eager(student: Tensor, teacher: Tensor, bank: Tensor) -> Tensor:
    """What a user would write: two similarity matrices, two log-softmaxes, KL."""
    bank = F.normalize(bank, dim=1)
    student_log = (F.normalize(student, dim=1) @ bank.T / STUDENT_TEMP).log_softmax(dim=1)
    with torch.no_grad():
        teacher_log = (F.normalize(teacher, dim=1) @ bank.T / TEACHER_TEMP).log_softmax(dim=1)
    return F.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)


def fused(student: Tensor, teacher: Tensor, bank: Tensor) -> Tensor:
    """The same by the library."""
    return contrastive_distillation(student, teacher, bank, student_temp=STUDENT_TEMP, teacher_temp=TEACHER_TEMP)


def seconds(function: Callable[..., Tensor], student: Tensor, *rest: Tensor) -> float:
    """Wall time of one forward and backward."""
    student.grad = None
    start = time.perf_counter()
    function(student, *rest).backward()
    return time.perf_counter() - start


def main(
    queries: int = 4096, rows: int = 8192, dims: list[int] | None = None, repeats: int = 7, backend: str = "cpu"
) -> None:
    """Print the table.

    Args:
        queries: N.
        rows: M, bank rows.
        dims: D; none: 32, 64, 128, 256.
        repeats: timed pairs, after one untimed.
        backend: of ``action_kernels``.
    """
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"forward + backward, float32, N={queries}, M={rows}, backend {backend}")
    print("| D | eager ms | fused ms | faster |\n|---|---|---|---|")
    for dim in dims or [32, 64, 128, 256]:
        generator = torch.Generator().manual_seed(dim)
        student, teacher, bank = (torch.randn(n, dim, generator=generator) for n in (queries, queries, rows))
        student.requires_grad_(True)
        times: dict[str, list[float]] = {"eager": [], "fused": []}
        with use_backend(backend):
            for repeat in range(repeats + 1):
                for name, function in (("eager", eager), ("fused", fused)):
                    value = seconds(function, student, teacher, bank)
                    if repeat:
                        times[name].append(value)
        ratio = statistics.median(a / b for a, b in zip(times["eager"], times["fused"], strict=True))
        slow, fast = (1000 * statistics.median(times[name]) for name in ("eager", "fused"))
        print(f"| {dim} | {slow:.0f} | {fast:.0f} | {ratio:.1f}× |", flush=True)


if __name__ == "__main__":
    auto_cli(main)
