"""Compiled Triton kernels: how they are read, on a loop written for the purpose, and that they have no faults."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("no Triton", allow_module_level=True)

from tools.machine_code.calls import Call
from tools.machine_code.chips import CHIPS
from tools.machine_code.launches import Compiled, Launch
from tools.machine_code.sass import Loop
from tools.machine_code.triton_kernels import check

# A loop over blocks of work around the loop over rows, which has a branch with a call.
SASS = """
.L_outer:
  STL [R1], R2 ;
.L_rows:
  LDL R3, [R1+0x8] ;
  HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
  MUFU.EX2 R5, R5 ;
  @!P0 BRA `(.L_none) ;
  LDL R6, [R1+0x10] ;
  STL [R1+0x14], R6 ;
  CALL.REL.NOINC `(clear) ;
.L_none:
  @P1 BRA `(.L_rows) ;
  LDL R2, [R1] ;
  @P2 BRA `(.L_outer) ;
"""


def test_spills_are_told_apart() -> None:
    assert Loop(SASS.splitlines()).spills() == (1, 2)
    assert Loop(SASS.replace("  LDL R3, [R1+0x8] ;\n", "").splitlines()).spills() == (0, 2)
    unguarded = SASS.replace("  @!P0 BRA `(.L_none) ;\n", "")
    assert Loop(unguarded.splitlines()).spills() == (3, 0)


def test_a_kernel_that_does_not_compile_or_lacks_its_loop_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no loop over the rows"):
        Loop(SASS.replace("HMMA", "MOV").splitlines())

    def fail(launch: Launch) -> Compiled:
        raise RuntimeError("PassManager::run failed")

    monkeypatch.setattr(Launch, "compile", fail)
    reports = check(CHIPS[0], Call(torch.bfloat16, "ieee", 64, student_grad=True))
    assert len(reports) >= 2 and all(report.faults == ("PassManager::run failed",) for report in reports)
    assert str(reports[0]).endswith("| FAILS: PassManager::run failed")


def test_a_loop_that_ends_in_a_call_of_a_label_calls_no_function() -> None:
    """The smaller loop over the features has products and such an end, and is not the loop over the rows."""
    features = """
.L_features:
  FFMA R4, R8, R10, R4 ;
  @P0 CALL.REL.NOINC `(.L_done) ;
  BRA `(.L_features) ;
.L_done:
"""
    head = ".L_rows:\n"
    assert Loop(SASS.replace(head, head + features).splitlines()).spills() == (1, 2)


def test_programs_on_a_multiprocessor() -> None:
    """The scarcest of registers, shared memory and threads counts."""
    chip = CHIPS[0]
    assert chip.programs(registers=128, shared=0, threads=256) == 2
    assert chip.programs(registers=121, shared=0, threads=256) == 2  # registers come in eights
    assert chip.programs(registers=32, shared=81 << 10, threads=256) == 2
    assert chip.programs(registers=16, shared=0, threads=1024) == 2
    assert chip.programs(registers=16, shared=200 << 10, threads=128) == 0


def without_interpreter(*command: str) -> None:
    """In a process of its own: the interpreter that other tests use compiles nothing."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    full = [sys.executable, "-m", *command]
    run = subprocess.run(full, cwd=Path(__file__).parents[2], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
def test_the_selections_passes_keep_to_their_instructions() -> None:
    without_interpreter("tools.machine_code.budgets")


@pytest.mark.slow
@pytest.mark.parametrize("chip", [chip.name for chip in CHIPS])
def test_every_configuration_that_can_be_chosen_compiles_without_faults(chip: str) -> None:
    without_interpreter("tools.machine_code.triton_kernels", f"--chips=[{chip}]")
