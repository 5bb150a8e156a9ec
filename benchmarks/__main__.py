"""Speed and peak memory of every operator against plain PyTorch: ``python -m benchmarks [--device cuda]``.

Prints a Markdown table, adds a row for every problem, program and pass to ``operators.csv``, and draws the plots.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jsonargparse import auto_cli

from action_kernels import list_backends, use_backend
from action_kernels.backends import chosen, select
from action_kernels.backends.choice import work_of

from .measure import peak_memory, times
from .plots import draw
from .problems import GPU_ONLY, KERNEL, SWEEPS, Problem, make_inputs
from .programs import GPU_BACKENDS, programs
from .rates import Floor
from .table import Row, append, describe, read

OWN = {"fused", "distillation", "eager", "chunked"}  # a failure of these is an error
COMPILED = ("features", "small", "operators")  # to compile for every size takes longer than all measurements


def main(
    device: str = "cpu",
    backend: str | None = None,
    sweeps: list[str] | None = None,
    rounds: int = 3,
    seconds: float = 3.0,
    memory: float = 6.0,
    compiled: bool = True,
    output: Path = Path("results/benchmarks"),
) -> None:
    """Measure, add to the table, draw.

    Args:
        device: cpu or cuda.
        backend: of ``action_kernels``; none: its own choice.
        sweeps: some of features, small, operators, queries, rows, selected, dtypes, large; none: all, large on a GPU.
        rounds: timed runs of every program at the least.
        seconds: time for the runs of one problem; where they are short, there are more of them.
        memory: GiB that plain PyTorch may need; it is left out of larger problems.
        compiled: measure ``torch.compile`` as well, in the first three sweeps.
        output: folder of the table and the plots.
    """
    if unknown := set(sweeps or ()) - set(SWEEPS):
        raise SystemExit(f"--sweeps: unknown {', '.join(sorted(unknown))}; choose from {', '.join(SWEEPS)}")
    table, machine = output / "operators.csv", describe(device)
    print(", ".join(str(value) for value in machine.values()))
    floors: dict[torch.dtype, Floor] = {}
    with use_backend(backend):
        for sweep in sweeps or [name for name in SWEEPS if device == "cuda" or name not in GPU_ONLY]:
            print(f"\n**{sweep}**: forward + backward, ms (MiB above inputs, results and gradients)\n")
            for problem in SWEEPS[sweep]:
                if problem.dtype not in floors:
                    floors[problem.dtype] = Floor(device, problem.dtype)
                least = floors[problem.dtype].milliseconds(problem.multiply_adds, problem.exponentials)
                allowed = int(memory * 2**30)
                rows = measure(problem, device, rounds, seconds, allowed, compiled and sweep in COMPILED)
                append(table, [{"sweep": sweep, **row, "floor_ms": round(least, 4), **machine} for row in rows])
                report(problem, rows, least)
    draw(read(table), output)


def measure(problem: Problem, device: str, rounds: int, seconds: float, memory: int, compiled: bool) -> list[Row]:
    """Rows of one problem: a program and a pass each."""
    inputs = make_inputs(problem, device)
    operator, work = KERNEL.get(problem.operator, problem.operator), work_of(inputs.student.shape, inputs.bank.shape)
    used = select(device, (problem.dtype,), operator, work).__name__.rpartition(".")[2]
    others = alternatives(device, used)
    to_run = programs(problem, device, memory, compiled, others)
    for name in [name for name in to_run if name not in OWN and not name.startswith("fused")]:
        try:
            to_run[name](inputs)[0].backward()
        except Exception as error:  # of another's program or compiler, which leaves the others to be measured
            print(f"without {name}: {type(error).__name__}: {str(error).splitlines()[:1]}")
            del to_run[name]
    measured = times(to_run, inputs, inputs.leaves, device, rounds, seconds)
    peaks = {name: peak_memory(program, inputs, inputs.leaves, device) for name, program in to_run.items()}
    backend = {"fused": used, "distillation": used, **{f"fused_{name}": name for name in others}}
    sizes = {"G": problem.groups, "N": problem.n, "M": problem.m, "D": problem.d, "k": problem.k}
    kind = {"dtype": str(problem.dtype).removeprefix("torch."), "bank_gradient": problem.bank_gradient}
    return [
        {
            "operator": problem.operator,
            "program": name,
            "backend": backend.get(name, ""),
            "pass": part,
            **sizes,
            **kind,
            "ms": round(span.median, 4),
            "ms_q20": round(span.low, 4),
            "ms_q80": round(span.high, 4),
            "peak_mib": round(peaks[name], 2),
        }
        for (name, part), span in measured.items()
    ]


def alternatives(device: str, used: str) -> list[str]:
    """Further backends to compare on a GPU; none if one was chosen by name."""
    if device != "cuda" or chosen() is not None:
        return []
    return [name for name in GPU_BACKENDS if name != used and list_backends()[name] == "ready"]


def report(problem: Problem, rows: list[Row], floor: float) -> None:
    """A line of Markdown: every program's time and memory, and how often ours fits into it."""
    total = {row["program"]: row for row in rows if row["pass"] == "both"}
    total = total or {row["program"]: row for row in rows}
    ours = total["fused"]["ms"]
    cells = [f"{problem}"]
    for name, row in total.items():
        faster = "" if name == "fused" else f", {row['ms'] / ours:.1f}×"
        cells.append(f"{name} {row['ms']:.2f} ({row['peak_mib']:.0f}){faster}")
    print("| " + " | ".join(cells) + f" | floor {floor:.2f} |", flush=True)


if __name__ == "__main__":
    auto_cli(main)
