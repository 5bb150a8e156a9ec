"""Tables of measured tiles, with one written for the purpose."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("no Triton", allow_module_level=True)

from action_kernels.backends.triton import tiles, tuned

CPU = torch.device("cpu")
TILE = {"block_n": 32, "block_m": 16, "warps": 2, "stages": 5, "ms": 0.1}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the table of this test's device belongs."""
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    monkeypatch.setattr(tuned, "device_name", lambda device: "Some GPU, 80 GB")
    monkeypatch.setattr(tiles, "INTERPRETED", False)
    tuned.read.cache_clear()
    return tmp_path / "Some-GPU-80-GB.json"


def write(path: Path, entries: object) -> None:
    path.write_text(json.dumps({"device": "Some GPU, 80 GB", "tiles": entries}))


def test_the_tables_tile_is_used_for_its_kernel_dtype_and_width(path: Path) -> None:
    rules = tiles.bank_pass_tile(100, torch.bfloat16, CPU), tiles.bank_grad_tile(128, torch.bfloat16, CPU)
    tuned.read.cache_clear()
    write(path, {"selection bfloat16 128": TILE, "student_grad float16 64": {**TILE, "warps": 8}})
    assert tiles.selection_tile(100, torch.bfloat16, CPU) == (32, 16, 128, 2, 5)
    assert tiles.student_grad_tile(64, torch.float16, CPU) == (32, 16, 64, 8, 5)
    assert (
        tiles.bank_pass_tile(100, torch.bfloat16, CPU),
        tiles.bank_grad_tile(128, torch.bfloat16, CPU),
    ) == rules
    assert tiles.selection_tile(64, torch.bfloat16, CPU)[:2] == (64, 64)
    assert tiles.selection_tile(128, torch.float16, CPU)[:2] == (64, 64)


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        (
            {"bank_pass bfloat16 64": {**TILE, "block_m": 48}},
            "'bank_pass bfloat16 64': block_m must be a power of two, not 48",
        ),
        (
            {"bank_pass bfloat16 64": {"block_n": 64}},
            "'bank_pass bfloat16 64': block_m must be a power of two, not None",
        ),
        ({"bank_pass bfloat16 64": {**TILE, "stages": 0}}, "stages must be a positive whole number, not 0"),
        ({"bank_pass bfloat16 64": {**TILE, "block_n": 8}}, "block_n must be at least 16, not 8"),
        ({"bank_pass bfloat16 64": [1, 2]}, "'bank_pass bfloat16 64': must have block_n"),
        ({"bank_pas bfloat16 64": TILE}, "'bank_pas bfloat16 64': the first word"),
        ([TILE], "tiles: must be a table"),
    ],
)
def test_a_malformed_entry_is_named(path: Path, entries: object, named: str) -> None:
    write(path, entries)
    with pytest.raises(ValueError) as error:
        tiles.bank_pass_tile(64, torch.bfloat16, CPU)
    assert str(path) in str(error.value) and named in str(error.value)


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_a_file_without_a_table_is_named(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match="no table of tiles") as error:
        tiles.bank_grad_tile(64, torch.bfloat16, CPU)
    assert str(path) in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tuning_without_a_gpu_says_so() -> None:
    run = subprocess.run([sys.executable, "-m", "tools.tuning.tiles"], capture_output=True, text=True, env=os.environ)
    assert run.returncode == 2
    assert run.stdout == "" and run.stderr.count("\n") == 1 and "no CUDA device" in run.stderr
