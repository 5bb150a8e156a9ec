"""Peak memory of the native CPU backend, measured: what a call holds above its inputs and results."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from action_kernels.backends import cpu

pytestmark = [
    pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable())),
    pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark of /proc/self/status"),
]

MIB = 1 << 20

# Freed memory goes back to the system, and the ballast lifts the resident size above whatever the imports had reached:
# then the high-water mark moves with the first page that the call adds.
PRELUDE = """
import ctypes
import torch
import action_kernels
from kernel_functions import Kernels
CPU, REFERENCE = Kernels("cpu"), Kernels("reference")
torch.manual_seed(0)
torch.set_num_threads(2)
MIB = 1 << 20

def high_water():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

def rows(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype).copy_(torch.randn(shape[-1]).expand(shape)).add_(
        torch.empty(shape[0], shape[1], 1, dtype=dtype).uniform_(-1, 1))

def peak(function):
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    ballast = torch.ones(600 * MIB // 4)
    before = high_water()
    results = function()
    print(high_water() - before - sum(x.numel() * x.element_size() for x in results))
"""

# Four N x M matrices, as plain PyTorch holds them, would be 8 GiB.
CALLS = {
    "forward_and_backward": """
student, teacher, bank = rows(1, 65536, 64)[0].requires_grad_(), rows(1, 65536, 64)[0], rows(1, 8192, 64)[0]

def call(backend):
    with action_kernels.use_backend(backend.backend):
        result = action_kernels.action_contrast(student, teacher, bank, 64)
    result.distillation.backward()
    return [*result, student.grad]
""",
    "action_contrast": """
s, t, b = rows(1, 16384, 64), rows(1, 16384, 64), rows(1, 8192, 64)
call = lambda backend: backend.action_contrast(s, t, b, 64, 0.1, 0.01, None, None, True, True, True)
""",
    "bank_gradient": """
s, t, b = rows(1, 8192, 64), rows(1, 8192, 64), rows(1, 8192, 64)
r = CPU.action_contrast(s, t, b, 0, 0.1, 0.01, None, None, True, False, True)
g = torch.ones(1, 8192)
call = lambda backend: [backend.action_contrast_bank_gradient(g, s, t, b, r.statistics, 0.1, 0.01, True)]
""",
    "long_bfloat16_bank": """
s, t, b = rows(1, 8, 64), rows(1, 8, 64), rows(1, 1 << 20, 64, dtype=torch.bfloat16)
call = lambda backend: backend.action_contrast(s, t, b, 64, 0.1, 0.01, None, None, True, True, True)
""",
    "hard_negatives": """
s, b = rows(1, 16384, 64), rows(1, 8192, 64)
call = lambda backend: backend.hard_negatives(s, b, 64, None, None, True)
""",
    "few_hard_negatives": """
s, b = rows(1, 4096, 64), rows(1, 8192, 64)
call = lambda backend: backend.hard_negatives(s, b, 64, None, None, True)
""",
    "hard_negatives_gradient": """
s, b = rows(1, 16384, 64), rows(1, 8192, 64)
index, g = torch.randint(8192, (1, 16384, 64)), torch.randn(1, 16384, 64)
call = lambda backend: backend.hard_negatives_gradient(g, s, b, index, True, True, True)
""",
    "anatomical_contrast": """
q, p, b = rows(1, 1024, 512), rows(1, 1024, 512), rows(1, 4096, 512)
index = torch.randint(4096, (1, 1024, 512))
call = lambda backend: backend.anatomical_contrast(q, p, b, index, 0.5, True)
""",
    "anatomical_contrast_gradient": """
q, p, b = rows(1, 1024, 512), rows(1, 1024, 512), rows(1, 4096, 512)
index = torch.randint(4096, (1, 1024, 512))
lse, g = CPU.anatomical_contrast(q, p, b, index, 0.5, True)[1], torch.ones(1, 1024)
call = lambda backend: backend.anatomical_contrast_gradient(g, q, p, b, index, lse, 0.5, True, True, True, True)
""",
}


def measure(call: str, backend: str) -> int:
    """Bytes above inputs and results that a call reaches in a process of its own."""
    # One small call first: it starts the threads and pages the code in.
    warm = "x = rows(1, 512, 32)\nCPU.action_contrast(x, x, x, 4, 0.1, 0.01, None, None, True, True, True)\n"
    script = f"{PRELUDE}{CALLS[call]}{warm}peak(lambda: call({backend.upper()}))\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600, env=environment
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.parametrize("call", CALLS)
def test_peak_memory_is_bounded(call: str) -> None:
    used = measure(call, "cpu")
    assert used <= 48 * MIB, f"{used / MIB:.1f} MiB above inputs and results"


def test_the_measurement_sees_what_the_reference_stores() -> None:
    assert measure("few_hard_negatives", "reference") > 4096 * 8192 * 4
