"""``python -m tools.machine_code.budgets``: instructions for a pair of rows in a selection's passes, against budgets.

A pass over 16-bit rows is bound by how many instructions a multiprocessor issues. Compiled for H100, without a GPU, at
D = 128; a budget is a little above what the kernel needs, so that what makes it slower is noticed. Exit status 1 if a
kernel exceeds its own, spills in its loop or takes no products on tensor cores.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ..command import run
from .calls import Call
from .chips import H100
from .launches import Compiled, launches
from .sass import Loop
from .triton_kernels import faults_of, spills_of, title

CALL = Call(torch.bfloat16, "ieee", 128, k=64, groups=1, queries=65536, rows=16384, student_grad=True)
CALLS = [replace(CALL, labelled=labelled, sides=sides) for sides in (2, 0) for labelled in (False, True)]
BUDGETS = {
    "bank pass, softmaxes, maxima": 17.5,
    "bank pass, softmaxes, maxima, labels": 23.0,  # 20.1 with Triton 3.9, 22.6 with 3.6
    "student grad, verdicts": 21.0,
    "student grad, verdicts, labels": 23.5,
    "bank pass, maxima": 5.5,
    "bank pass, maxima, labels": 10.5,  # 7.1 with Triton 3.9, 10.3 with 3.6
    "verdicts": 9.0,
    "verdicts, labels": 11.0,
}


def for_a_pair(compiled: Compiled) -> float:
    """Instructions of a thread's tile, over its pairs."""
    once, inner, _ = Loop(compiled.sass).parts()
    launch = compiled.launch
    pairs = launch["BLOCK_N"] * launch["BLOCK_M"] / compiled.threads
    return (sum(once.values()) + sum(inner.values())) / pairs


def main() -> int:
    """Compile, count and compare."""
    failed = False
    for call in CALLS:
        for launch in launches(H100, call):
            if (name := title(launch)) not in BUDGETS:
                continue
            compiled = launch.compile()
            spills, budget = spills_of(compiled), BUDGETS[name]
            faults = faults_of(compiled, True, spills)
            needed = math.inf if spills is None else for_a_pair(compiled)
            failed = failed or needed > budget or bool(faults)
            print(f"{name}: {needed:.2f} of {budget}", *faults, sep=", ", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
