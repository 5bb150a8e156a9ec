"""The Triton backend's functions on tensors without data, launching nothing: run by test_triton_contract.py.

Prints, as JSON, the memory that they take beyond inputs and results, and the shapes of every function's results. A
tensor without data has no values to bring to the host: whatever would wait for a GPU raises an error.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from allocations import Allocations
from kernel_functions import Kernels

from action_kernels.backends.triton.launch import Target, aimed_at
from tools.machine_code.calls import Call
from tools.machine_code.chips import H100

TARGET = Call(torch.bfloat16, "ieee", 128, k=64, groups=1, queries=65536, rows=16384)
CALLS = {
    "forward": replace(TARGET, k=0),
    "gradient": replace(TARGET, k=0, student_grad=True),
    "forward, k": TARGET,
    "gradient, k": replace(TARGET, student_grad=True),
}

TRITON = Kernels("triton")


def launching_nothing() -> AbstractContextManager:
    """As on an H100; launches and their arguments are not even kept."""
    return aimed_at(Target(H100.capability, H100.processors, "ieee", launch=lambda *_, **__: None))


def extra(call: Call) -> int:
    """Bytes at the peak, but for inputs and results."""
    inputs = call.inputs()
    with launching_nothing(), Allocations() as allocations:
        results = call.run(inputs)
    return allocations.peak(results)


def shapes() -> dict[str, list[list[int]]]:
    g, n, m, d, k = 2, 33, 70, 24, 5

    def rows(length: int) -> torch.Tensor:
        return torch.empty(g, length, d, dtype=torch.float16, device="meta")

    student, teacher, bank = rows(n), rows(n), rows(m)
    labels = [torch.empty(g, x, dtype=torch.int64, device="meta") for x in (n, m)]
    index = torch.empty(g, n, k, dtype=torch.int64, device="meta")
    line = torch.empty(g, n, device="meta")
    with launching_nothing():
        contrast = TRITON.action_contrast(student, teacher, bank, k, 0.1, 0.05, *labels, True, True, True)
        saved = contrast.statistics
        loss, lse = TRITON.anatomical_contrast(student, teacher, bank, index, 0.5, True)
        pairs = student, teacher, bank, index, lse, 0.5, True, True, True, True
        results = {
            "action_contrast": contrast,
            "action_contrast_student_gradient": [
                TRITON.action_contrast_student_gradient(student, teacher, bank, saved[:2], 0.1, 0.05, True)
            ],
            "action_contrast_bank_gradient": [
                TRITON.action_contrast_bank_gradient(line, student, teacher, bank, saved, 0.1, 0.05, True)
            ],
            "hard_negatives": TRITON.hard_negatives(student, bank, k, *labels, True),
            "hard_negatives_gradient": TRITON.hard_negatives_gradient(
                contrast.similarity, student, bank, index, True, True, True
            ),
            "log_sum_exp": TRITON.log_sum_exp(student, bank, 0.1, True, True),
            "log_sum_exp_bank_gradient": [TRITON.log_sum_exp_bank_gradient(line, student, bank, lse, 0.1, True)],
            "anatomical_contrast": [loss, lse],
            "anatomical_contrast_gradient": TRITON.anatomical_contrast_gradient(line, *pairs),
        }
    return {name: [list(x.shape) for x in found] for name, found in results.items()}


if __name__ == "__main__":
    print(json.dumps({"extra": {name: extra(call) for name, call in CALLS.items()}, "shapes": shapes()}))
