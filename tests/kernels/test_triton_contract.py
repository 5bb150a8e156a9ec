"""What the Triton backend allocates, and that it never waits for its device; on tensors without data."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from allocations import Allocations

if importlib.util.find_spec("triton") is None:
    pytest.skip("no Triton", allow_module_level=True)


@pytest.fixture(scope="module")
def contract() -> dict[str, dict]:
    """From a process of its own: the interpreter that other tests use has tiles of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), environment.get("PYTHONPATH")]))
    command = [sys.executable, str(Path(__file__).with_name("triton_contract.py"))]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_memory_is_counted_at_its_peak() -> None:
    with Allocations() as allocations:
        first = torch.empty(100, device="meta")
        view = first.view(10, 10)
        del first
        result = torch.empty(1000, device="meta")
        del view
        torch.empty(50, device="meta")
    assert allocations.peak([]) == 4 * 1100
    assert allocations.peak([result]) == 4 * 100


@pytest.mark.parametrize(
    ("call", "percent"), [("forward", 1.1), ("gradient", 1.8), ("forward, k", 4.2), ("gradient, k", 4.2)]
)
def test_memory_at_the_design_target(contract: dict[str, dict], call: str, percent: float) -> None:
    """Share of one float32 similarity matrix, N = 65,536 by M = 16,384 with D = 128 and k = 64.

    Scaled copies of 16-bit rows take 0.9 %, a gradient's partial sums 0.8 %. The selection's verdicts take 2.0 %, after
    group maxima of 1.6 %; the buffers for flagged queries, which do not grow with N or M, 1.2 %.
    """
    assert 0 < contract["extra"][call] < percent / 100 * 4 * 65536 * 16384


def test_no_function_needs_a_value_on_the_host(contract: dict[str, dict]) -> None:
    """They run on tensors without values, from which ``.item()`` and its kind cannot read."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty(1, device="meta").item()
    rows, bank = [2, 33, 24], [2, 70, 24]
    assert contract["shapes"] == {
        "action_contrast": [[2, 33], [3, 2, 33], rows, [2, 33, 5], [2, 33, 5]],
        "action_contrast_student_gradient": [rows],
        "action_contrast_bank_gradient": [bank],
        "hard_negatives": [[2, 33, 5], [2, 33, 5]],
        "hard_negatives_gradient": [rows, bank],
        "log_sum_exp": [[2, 33], rows],
        "log_sum_exp_bank_gradient": [bank],
        "anatomical_contrast": [[2, 33], [2, 33]],
        "anatomical_contrast_gradient": [rows, rows, bank],
    }
