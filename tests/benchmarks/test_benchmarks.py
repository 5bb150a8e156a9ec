"""The benchmark harness: its programs compute the same, its measurements measure, its table and plots appear."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from action_kernels.backends import cpu
from benchmarks import __main__ as harness
from benchmarks import rates, reading, scaling, small_calls, table, training_step
from benchmarks.measure import times
from benchmarks.problems import SWEEPS, Inputs, Problem, make_inputs
from benchmarks.programs import CHUNK, EAGER, programs
from benchmarks.rates import Floor

SMALL = Problem("action_contrast", CHUNK + 88, 90, 12, 5)
PROGRAMS = ("fused", "distillation", "eager", "chunked")  # that compute it
PROBLEMS = [
    *(replace(SMALL, operator=operator) for operator in EAGER if operator != "relation_negatives"),
    replace(SMALL, operator="contrastive_distillation", bank_gradient=True),
    replace(SMALL, operator="anatomical_contrast", bank_gradient=True),
    replace(SMALL, operator="contrastive_distillation", n=9, groups=3),
]


def without_compiler(problem: Problem) -> dict:
    return programs(problem, "cpu", memory=1 << 30, compiled=False)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_programs_agree(problem: Problem) -> None:
    inputs = make_inputs(problem, "cpu")
    found = {}
    for name, program in without_compiler(problem).items():
        for leaf in inputs.leaves:
            leaf.grad = None
        loss, *others = program(inputs)
        loss.backward()
        found[name] = [loss.detach(), *others], [leaf.grad for leaf in inputs.leaves]
    results, gradients = found.pop("fused")
    assert found and all(gradient.abs().max() > 0 for gradient in gradients)
    if problem.operator == "action_contrast":  # without the selection's results
        (loss,), others = found["distillation"]
        found["distillation"] = [loss, *results[1:]], others
    for name, (other_results, other_gradients) in found.items():
        for got, want in zip((*results, *gradients), (*other_results, *other_gradients), strict=True):
            scale = want.abs().max().item()
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * scale, msg=lambda m, n=name: f"{n}: {m}")


def test_drawn_negatives_follow_the_relation() -> None:
    inputs = make_inputs(Problem("relation_negatives", 40, 200, 1, 2000), "cpu")
    shares = []
    for program in without_compiler(Problem("relation_negatives", 40, 200, 1, 2000)).values():
        (index,) = program(inputs)
        drawn = inputs.bank_labels[index]
        assert not (drawn == inputs.query_labels[:, None]).any()
        shares.append(torch.stack([(drawn == c).float().mean() for c in range(4)]))
    torch.testing.assert_close(shares[0], shares[1], rtol=0, atol=0.01)


# In a process of its own: in a heap that others have used, a free block may be there already.
PEAKS = """
import torch
from benchmarks.measure import peak_memory

def peak(program):
    print(peak_memory(program, None, [], "cpu"))

peak(lambda _: (torch.ones(40 << 18).sum(),))  # 40 MiB
peak(lambda _: (torch.ones(10).sum(), torch.ones(40 << 18)))
kept = torch.ones(80 << 18)  # what was held and freed before does not hide it
del kept
peak(lambda _: (torch.ones(40 << 18).sum(),))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_sees_a_temporary_and_not_the_results() -> None:
    run = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    temporary, result, after_others = map(float, run.stdout.split())
    assert 39 < temporary < 45
    assert result < 4
    assert 39 < after_others < 45


def test_times_are_of_the_passes() -> None:
    inputs = make_inputs(SMALL, "cpu")
    found = times(without_compiler(SMALL), inputs, inputs.leaves, "cpu", rounds=3, seconds=0)
    assert set(found) == {(name, part) for name in PROGRAMS for part in ("forward", "backward", "both")}
    for name in PROGRAMS:
        assert found[name, "both"].high >= found[name, "forward"].low + found[name, "backward"].low
        assert found[name, "both"].low <= found[name, "both"].median <= found[name, "both"].high


def test_floor_grows_with_the_work() -> None:
    floor = Floor("cpu", torch.float32)
    assert 0 < floor.milliseconds(10**6, 0) < floor.milliseconds(10**6, 10**6) < floor.milliseconds(10**9, 10**9)


def test_harness_writes_table_and_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SWEEPS", {"features": [SMALL], "rows": [SMALL], "queries": [replace(SMALL, n=9)]})
    for _ in range(2):  # adds
        harness.main(rounds=1, seconds=0, compiled=False, output=tmp_path)
    with (tmp_path / "operators.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (4 + 4 + 3) * 3  # runs, programs of the problems, passes
    assert {row["program"] for row in rows} == set(PROGRAMS)
    assert {row["backend"] for row in rows if row["program"] == "fused"} == {
        "reference" if cpu.unavailable() else "cpu"
    }
    assert all(0 < float(row["ms_q20"]) <= float(row["ms"]) <= float(row["ms_q80"]) for row in rows)
    assert {"commit", "torch", "device", "threads"} <= set(rows[0])
    for name in ("growth", "floor"):
        for theme in ("light", "dark"):
            assert "action_kernels</text>" in (tmp_path / f"{name}-{theme}.svg").read_text()


def test_another_program_that_fails_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(inputs: Inputs) -> tuple[torch.Tensor, ...]:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(harness, "programs", lambda *_: {**without_compiler(SMALL), "broken": broken})
    rows = harness.measure(SMALL, "cpu", rounds=1, seconds=0, memory=1 << 30, compiled=False)
    assert {row["program"] for row in rows} == set(PROGRAMS)
    assert "without broken: RuntimeError" in capsys.readouterr().out


def test_table_of_other_columns_is_not_spoilt(tmp_path: Path) -> None:
    table.append(tmp_path / "t.csv", [{"a": 1}])
    with pytest.raises(SystemExit, match="choose another --output"):
        table.append(tmp_path / "t.csv", [{"b": 1}])
    table.append(tmp_path / "t.csv", [{"a": 2}])
    assert [row["a"] for row in table.read(tmp_path / "t.csv")] == ["1", "2"]


def test_sweeps_measure_every_operator() -> None:
    assert {problem.operator for sweep in SWEEPS.values() for problem in sweep} == set(EAGER)


def test_unknown_sweep_is_refused() -> None:
    with pytest.raises(SystemExit, match="unknown typo; choose from features"):
        harness.main(sweeps=["typo"])


@pytest.fixture(scope="module")
def training_steps() -> dict[bool, training_step.Step]:
    config = training_step.published(size=64, features=24, channels=(4, 6, 8))
    return {plain: training_step.Step(config, "cpu", plain) for plain in (False, True)}


def test_both_training_steps_compute_the_same(training_steps: dict[bool, training_step.Step]) -> None:
    ours, plain = (training_steps[x]() for x in (False, True))
    assert ours["contrast"] > 0
    for name, value in ours.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=1e-6)
    ours, plain = (dict(training_steps[x].learner.named_parameters()) for x in (False, True))
    head = "stages.anatomical_contrast.representation.student"
    for name in (f"{head}.spread.weight", f"{head}.project.weight", "network.student.decoder.0.reduce.weight"):
        want = plain[name].grad
        scale = want.abs().max().item()
        assert scale > 0
        torch.testing.assert_close(
            ours[name].grad, want, rtol=1e-3, atol=1e-4 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_training_step_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training_step.main(size=64, features=24, channels=(4, 6, 8), precision="bf16", rounds=1, output=tmp_path)
    rows = table.read(tmp_path / "training_step.csv")
    assert [row["step"] for row in rows] == ["fused", "plain"]
    assert all(float(row["seconds"]) > 0 for row in rows)
    parts = [line.split(" | ") for line in capsys.readouterr().out.partition("part of a step")[2].splitlines()[2:]]
    assert [name.strip("| ") for name, *_ in parts][:3] == [
        "whole step",
        "teacher forward",
        "student forward and backward",
    ]
    shares = [float(share.strip("% |")) for *_, share in parts]
    assert shares[0] == 100 and abs(sum(shares[1:]) - 100) <= len(shares)


def test_small_calls_are_counted_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    problems = [Problem("contrastive_distillation", 3, 5, 8), Problem("relation_negatives", 4, 20, 1, 6)]
    monkeypatch.setattr(small_calls, "PROBLEMS", problems)
    small_calls.main(rounds=1, output=tmp_path)
    rows = table.read(tmp_path / "small_calls.csv")
    assert [row["program"] for row in rows] == 2 * ["fused", "eager"]
    assert all(0 < float(row["enqueue"]) <= float(row["each_call"]) for row in rows)
    shown = capsys.readouterr().out
    assert all(str(problem) in shown for problem in problems)


def test_processes_share_a_bank(tmp_path: Path, capsys) -> None:
    scaling.main(processes=(2,), queries=20, rows=301, features=8, k=3, rounds=1, output=tmp_path)
    divided, whole = table.read(tmp_path / "scaling.csv")
    assert float(divided["ms"]) > 0 and float(divided["sent_mib"]) > 0 and float(whole["sent_mib"]) == 0
    assert (divided["collectives"], whole["collectives"]) == ("5", "0")
    assert float(divided["bank_mib"]) < float(whole["bank_mib"])
    shown = capsys.readouterr().out
    assert "2  divided" in shown and "A prediction, not a measurement" in shown


def test_uneven_processes_stand_beside_one_with_all_of_their_work(tmp_path: Path) -> None:
    scaling.main(shares=(3, 0, 1), queries=4, rows=100, features=8, k=3, rounds=1, output=tmp_path)
    divided, whole = table.read(tmp_path / "scaling.csv")
    assert (divided["processes"], divided["queries"], whole["processes"], whole["queries"]) == ("3", "4", "1", "12")
    assert 0 < float(divided["in_collectives_ms"]) <= float(divided["ms"]) and float(whole["in_collectives_ms"]) == 0


def test_reading_is_set_beside_unpacking(tmp_path: Path, capsys) -> None:
    reading.main("mri", volumes=4, slices=3, rounds=1, folder=tmp_path, output=tmp_path)
    rows = table.read(tmp_path / "reading.csv")
    assert [row["program"] for row in rows][0::2] == ["gzip", "first run"] and rows[-1]["program"] == "next run"
    assert float(rows[2]["seconds"]) > float(rows[3]["seconds"]) > 0
    assert {row["files"] for row in rows} == {"7"}  # the label of the one who trains without is not read
    assert [path.name for path in tmp_path.iterdir()] == ["reading.csv"]
    assert "| first run |" in capsys.readouterr().out


def test_rates_are_those_of_this_machine() -> None:
    copied = rates.copy_rate("cpu")
    assert 1e5 < copied < 1e9  # 0.1 GB/s to 1 TB/s
    assert 1e4 < rates.exponential_rate("cpu") < 1e8


@pytest.mark.parametrize("main", [harness.main, small_calls.main, rates.main, training_step.main])
def test_a_gpu_that_is_not_there_is_named(main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="finds no CUDA device"):
        main(device="cuda")
