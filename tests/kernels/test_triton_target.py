"""Aiming the Triton backend at a GPU that is not here, and trying tiles: inside the block alone, and there entirely."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("no Triton", allow_module_level=True)

from action_kernels.backends.triton import launch, tiles, tuned
from action_kernels.backends.triton.hard_negatives import hard_negatives
from action_kernels.backends.triton.launch import Target, aimed_at

META = torch.device("meta")


def test_launches_go_to_the_target_and_nothing_runs() -> None:
    launched: list[tuple[str, tuple[int, ...]]] = []

    def record(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        launched.append((kernel.__name__, grid))
        assert len(arguments) + len(options) > 5

    rows = torch.empty(1, 300, 32, dtype=torch.bfloat16, device="meta")
    with aimed_at(Target(90, 132, "ieee", record)):
        similarity, index = hard_negatives(rows, rows, 4, None, None, True)
    assert similarity.shape == index.shape == (1, 300, 4)
    selecting = [name for name, _ in launched if not name.startswith(("_prepare", "_narrow"))]
    assert selecting[:5] == ["_bank_pass", "_limits", "_verdicts", "_collect", "_buffered"]
    assert all(grid and min(grid) > 0 for _, grid in launched)


def test_decisions_are_the_targets_inside_the_block_alone() -> None:
    def decisions() -> tuple[int, int, str]:
        return launch.capability(META), launch.processors(META), launch.float32_precision()

    before = decisions()
    with aimed_at(Target(100, 148, "tf32", print)):
        assert decisions() == (100, 148, "tf32")
        with aimed_at(Target(80, 108, "ieee", print)):
            assert decisions() == (80, 108, "ieee")
        assert decisions() == (100, 148, "tf32")
    assert decisions() == before


def test_a_tile_on_trial_goes_before_every_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "INTERPRETED", False)
    usual = tiles.selection_tile(64, torch.bfloat16, META)
    key = tuned.key_of("selection", 64, torch.bfloat16)
    with tuned.on_trial(key, (16, 256, 2, 7)):
        assert tiles.selection_tile(64, torch.bfloat16, META) == (16, 256, 64, 2, 7)
        assert tiles.bank_pass_tile(64, torch.bfloat16, META) != (16, 256, 64, 2, 7)
        assert tiles.selection_tile(128, torch.bfloat16, META) != (16, 256, 128, 2, 7)
    assert tiles.selection_tile(64, torch.bfloat16, META) == usual
