"""One call between the marks that a profiler waits for.

``ncu --profile-from-start off python -m benchmarks.one_call``
"""

from __future__ import annotations

from typing import Literal

import torch
from jsonargparse import auto_cli

from action_kernels import use_backend

from .problems import LARGE, make_inputs
from .programs import FUSED

WARM_UP = 3


def main(backend: Literal["triton", "cuda"] = "triton") -> None:
    """Run the largest ``action_contrast``, forward and backward, on the current GPU.

    Args:
        backend: of ``action_kernels``.
    """
    if not torch.cuda.is_available():
        raise SystemExit("profiling needs a GPU, and PyTorch finds no CUDA device here")
    inputs, program = make_inputs(LARGE, "cuda"), FUSED[LARGE.operator]
    with use_backend(backend):
        for _ in range(WARM_UP):
            program(inputs)[0].backward()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        program(inputs)[0].backward()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    auto_cli(main)
