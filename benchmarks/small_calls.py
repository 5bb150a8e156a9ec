"""What a call costs beside its arithmetic: ``python -m benchmarks.small_calls [--device cuda]``.

At the sizes of a training step the time goes into asking for the work. For every small problem and program, forward and
backward: the time until the call has been handed over (enqueue) and until it is done in a row of calls (each call), on
a GPU also the time of its graph replayed, in which nothing is asked for (replay), the kernels that run, and the blocks
of memory that are asked for. Adds a row for each to ``small_calls.csv``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from action_kernels import use_backend

from .__main__ import alternatives
from .measure import quantiles
from .problems import BASE, INFO_NCE, SWEEPS, Problem, make_inputs
from .programs import EAGER, FUSED, on_backend
from .rates import wait
from .table import Row, append, describe

PROBLEMS = [
    *SWEEPS["small"],
    Problem("contrastive_distillation", 6, 36, 256, groups=49),
    replace(INFO_NCE, n=256, m=2048, d=64, k=128),
    Problem("relation_negatives", 1024, 8192, 1, 512),
]
ON_GPU = [replace(BASE, n=1024, dtype=torch.bfloat16)]
CALLS = 50  # in a row
WARM_UP = 10

Step = Callable[[], object]


def main(
    device: str = "cpu",
    backend: str | None = None,
    compiled: bool = False,
    rounds: int = 9,
    output: Path = Path("results/benchmarks"),
) -> None:
    """Measure, print a Markdown table, add to ``small_calls.csv``.

    Args:
        device: cpu or cuda.
        backend: of ``action_kernels``; none: its own choice, beside the others on a GPU.
        compiled: measure plain PyTorch under ``torch.compile``, too.
        rounds: of calls in a row; the programs take turns.
        output: folder of the table.
    """
    machine = describe(device)
    print(", ".join(str(value) for value in machine.values()))
    columns = ("enqueue", "each call", *(("replay", "kernels", "allocations") if device == "cuda" else ()))
    print(f"\n| forward + backward, µs | | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    with use_backend(backend) if backend else nullcontext():
        for problem in [*PROBLEMS, *(ON_GPU if device == "cuda" else ())]:
            rows = measure(problem, device, compiled, rounds)
            append(output / "small_calls.csv", [{**row, **machine} for row in rows])
            for row in rows:
                cells = [row[name.replace(" ", "_")] for name in columns]
                print(f"| {problem} | {row['program']} | {' | '.join(map(str, cells))} |", flush=True)


def measure(problem: Problem, device: str, compiled: bool, rounds: int) -> list[Row]:
    """Rows of one problem, a program each."""
    inputs = make_inputs(problem, device)
    eager, fused = EAGER[problem.operator], FUSED[problem.operator]
    programs = {"fused": fused, "eager": eager}
    programs |= {f"fused_{name}": on_backend(name, fused) for name in alternatives(device, "")}
    if compiled and problem.operator != "relation_negatives":
        torch.compiler.reset()
        programs["compiled"] = torch.compile(eager, dynamic=False)
    steps = {name: _step(program, inputs, inputs.leaves) for name, program in programs.items()}
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    for _ in range(rounds):
        for name, step in steps.items():
            spans[name].append(_in_a_row(step, device))
    sizes = {"G": problem.groups, "N": problem.n, "M": problem.m, "D": problem.d, "k": problem.k}
    rows = []
    for name, step in steps.items():
        enqueue, each = (quantiles(column).median for column in zip(*spans[name], strict=True))
        rows.append(
            {
                "operator": problem.operator,
                "program": name,
                **sizes,
                "dtype": str(problem.dtype).removeprefix("torch."),
                "enqueue": round(enqueue, 1),
                "each_call": round(each, 1),
                **(_on_gpu(step) if device == "cuda" else {"replay": "", "kernels": "", "allocations": ""}),
            }
        )
    return rows


def _step(program: Callable, inputs: object, leaves: Sequence[Tensor]) -> Step:
    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        result = program(inputs)[0]
        if result.requires_grad:
            result.backward()

    return step


def _in_a_row(step: Step, device: str) -> tuple[float, float]:
    """Microseconds of a call until it is handed over, and until it is done."""
    wait(device)
    begin = time.perf_counter()
    for _ in range(CALLS):
        step()
    handed_over = time.perf_counter()
    wait(device)
    return 1e6 * (handed_over - begin) / CALLS, 1e6 * (time.perf_counter() - begin) / CALLS


def _on_gpu(step: Step) -> Row:
    """Microseconds of a replayed graph; kernels and allocations of a call."""
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        step()
        torch.cuda.synchronize()
    allocations = torch.cuda.memory_stats()["allocation.all.allocated"] - before
    kernels = sum(event.device_type == DeviceType.CUDA for event in recorded.events())
    return {"replay": _replay(step), "kernels": kernels, "allocations": allocations}


def _replay(step: Step) -> float | str:
    """Microseconds; nothing where a program cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:
        print(f"without a graph: {str(error).splitlines()[0]}")
        return ""
    graph.replay()
    return round(_in_a_row(graph.replay, "cuda")[1], 1)


if __name__ == "__main__":
    auto_cli(main)
