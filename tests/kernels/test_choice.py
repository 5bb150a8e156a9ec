"""A GPU's automatic choice follows the table of what was measured on it; the table's making and its mistakes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kernel_functions import OPERATORS
from test_backends import fake_backend

from action_kernels.backends import choice, reference, select
from benchmarks.problems import Problem, make_inputs
from benchmarks.programs import programs
from benchmarks.table import Row, append
from tools.tuning import backends as choose

registry = sys.modules["action_kernels.backends"]
DEVICE = "Some GPU, 80 GB"
ROWS = (torch.bfloat16,) * 3
FORWARD = {"pass": "forward"}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the table of this test's GPU belongs; both of its backends are ready."""
    monkeypatch.setattr(choice, "FOLDER", tmp_path / "measured")
    monkeypatch.setattr(choice, "device_name", lambda: DEVICE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv(registry.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(registry, "_BACKENDS", {"reference": None, "triton": "cuda", "cuda": "cuda"})
    ready = {name: fake_backend() for name in ("triton", "cuda")} | {"reference": reference}
    monkeypatch.setattr(registry, "_load", ready.__getitem__)
    for cache in (registry._automatic, choice.read):
        cache.cache_clear()
    yield tmp_path / "measured" / "Some-GPU-80-GB.json"
    for cache in (registry._automatic, choice.read):
        cache.cache_clear()


def chosen(kernel: str, rows: tuple[torch.dtype, ...] = ROWS, work: int = 1024 * 8192 * 64) -> str:
    backend = select("cuda", rows, kernel, work)
    return next(name for name in ("triton", "cuda", "reference") if registry._load(name) is backend)


def measurement(operator: str, backend: str, ms: float, **others: object) -> Row:
    sizes = {"G": 1, "N": 1024, "M": 8192, "D": 64, "k": 64, "dtype": "bfloat16", "bank_gradient": False}
    row = {"operator": operator, "program": f"fused_{backend}", "backend": backend, "pass": "both", **sizes, "ms": ms}
    return {**row, "device": DEVICE, "torch": "2.11", "commit": "abc", "date": "today", **others}


def test_without_a_table_the_usual_order_holds(path: Path) -> None:
    assert chosen("action_contrast") == chosen("hard_negatives") == "triton"


def test_the_faster_backend_becomes_the_choice(path: Path, tmp_path: Path) -> None:
    table = tmp_path / "operators.csv"
    rows = [
        # Faster by 4 on one problem and slower by 2 on another of the same work: the ratios' geometric mean decides.
        *(measurement("hard_negatives", "triton", ms, k=k) for k, ms in ((8, 0.4), (64, 10.0))),
        *(measurement("hard_negatives", "cuda", ms, k=k) for k, ms in ((8, 0.1), (64, 20.0))),
        measurement("hard_negatives", "triton", 0.001, N=99),  # that the other did not run
        *(measurement("contrastive_distillation", name, ms) for name, ms in (("triton", 1.0), ("cuda", 1.1))),
        *(measurement("info_nce", name, ms, dtype="float32") for name, ms in (("triton", 3.0), ("cuda", 1.1))),
        *(measurement("relation_negatives", name, ms, **FORWARD) for name, ms in (("triton", 2), ("cuda", 1))),
        *(measurement("anatomical_contrast", name, ms) for name, ms in (("triton", 2), ("cuda", 4))),
        *(measurement("anatomical_contrast", name, ms) for name, ms in (("triton", 2), ("cuda", 1))),  # again: newer
        measurement("anatomical_contrast", "cuda", 100, **FORWARD),
        measurement("hard_negatives", "", 0.0001, program="eager"),
    ]
    append(table, rows)
    choose.main(table)
    written = json.loads(path.read_text())
    assert written["device"] == DEVICE
    assert {key: [one["order"] for one in measured] for key, measured in written["backends"].items()} == {
        "hard_negatives bfloat16": [["cuda", "triton"]],
        "action_contrast bfloat16": [["triton", "cuda"]],
        "log_sum_exp float32": [["cuda", "triton"]],
        "relation_negatives": [["cuda", "triton"]],
        "anatomical_contrast bfloat16": [["cuda", "triton"]],
    }
    assert written["backends"]["hard_negatives bfloat16"][0]["work"] == 1024 * 8192 * 64
    assert chosen("hard_negatives") == "cuda"
    assert chosen("anatomical_contrast") == chosen("relation_negatives", (), 0) == "cuda"
    assert chosen("action_contrast") == "triton"
    mixed = (torch.float32, torch.bfloat16, torch.bfloat16)  # computed in float32
    assert chosen("log_sum_exp", (torch.float32,) * 2) == chosen("log_sum_exp", mixed[:2]) == "cuda"
    assert chosen("hard_negatives", (torch.float16,) * 2) == "triton"  # not measured


def test_a_call_goes_by_the_measurement_of_the_nearest_work(path: Path, tmp_path: Path) -> None:
    small, large = {"N": 64, "M": 1024, "D": 64}, {"N": 65536, "M": 16384, "D": 64}  # 2^22 and 2^36
    rows = [
        *(measurement("action_contrast", name, ms, **small) for name, ms in (("triton", 2.0), ("cuda", 1.0))),
        *(measurement("action_contrast", name, ms, **large) for name, ms in (("triton", 10.0), ("cuda", 15.0))),
    ]
    append(tmp_path / "operators.csv", rows)
    choose.main(tmp_path / "operators.csv")
    by_bits = {bits: chosen("action_contrast", work=2**bits) for bits in (0, 10, 22, 28, 30, 36, 60)}
    assert by_bits == {0: "cuda", 10: "cuda", 22: "cuda", 28: "cuda", 30: "triton", 36: "triton", 60: "triton"}


@pytest.mark.parametrize("groups", [1, 3])
def test_work_is_that_of_all_pairs(groups: int) -> None:
    problem = Problem("hard_negatives", 5, 7, 4, 2, groups=groups)
    inputs = make_inputs(problem, "cpu")
    assert choice.work_of(inputs.student.shape, inputs.bank.shape) == problem.pairs * 4


def test_operators_are_the_references_files() -> None:
    assert set(choice.operators()) >= set(OPERATORS)


def test_a_backend_that_is_not_ready_is_passed_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps({"backends": {"hard_negatives bfloat16": [{"work": 1, "order": ["cuda"]}]}}))
    assert chosen("hard_negatives") == "cuda"
    registry._automatic.cache_clear()
    states = {"triton": fake_backend(), "cuda": "not built"}
    monkeypatch.setattr(registry, "_load", states.__getitem__)
    assert select("cuda", ROWS, "hard_negatives") is states["triton"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "no table of backends"),
        ("[]", "no table of backends"),
        ('{"backends": 3}', "no table of backends"),
        ('{"backends": {"hard": ["cuda"]}}', "'hard' is no operator"),
        ('{"backends": {"hard_negatives": ["cuda"]}}', "'hard_negatives': must be a list of {\"work\": whole number"),
        ('{"backends": {"hard_negatives": [{"work": 1, "order": ["cpu"]}]}}', "list of triton, cuda}, not"),
        ('{"backends": {"hard_negatives": [{"work": 1.5, "order": ["cuda"]}]}}', "'hard_negatives': must be a list of"),
        ('{"backends": {"hard_negatives": [{"order": ["cuda"]}]}}', "'hard_negatives': must be a list of"),
    ],
)
def test_a_malformed_table_is_named(path: Path, text: str, named: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        select("cuda", ROWS, "hard_negatives")
    assert str(path) in str(error.value) and named in str(error.value)


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([measurement("hard_negatives", "", 1.0)], "must be of one GPU, not of none"),
        ([measurement("hard_negatives", "cuda", 1.0), measurement("x", "cuda", 1.0, device="B")], "Some GPU, 80 GB"),
        ([measurement("hard_negatives", "cuda", 1.0)], "no problem was run by several backends"),
    ],
)
def test_a_table_that_compares_nothing_is_refused(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows, named
) -> None:
    append(tmp_path / "operators.csv", rows)
    with pytest.raises(SystemExit) as stop:
        choose.main(tmp_path / "operators.csv")
    assert stop.value.code == 2 and named in capsys.readouterr().err
    assert not path.exists()


def test_alternatives_run_on_their_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem("hard_negatives", 9, 12, 4, 2)
    seen = []

    def spy(*_: object, **__: object) -> tuple[torch.Tensor, None]:
        return torch.zeros(1), seen.append(registry.chosen())

    monkeypatch.setattr("action_kernels.hard_negatives", spy)
    for name, program in programs(problem, "cpu", 1 << 20, compiled=False, alternatives=["reference"]).items():
        if name.startswith("fused"):
            program(make_inputs(problem, "cpu"))
    assert seen == [None, "reference"]
