"""Aiming the Triton backend at a GPU that is not here, and trying tiles: inside the block alone, and there entirely."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from operations import Operations

if importlib.util.find_spec("triton") is None:
    pytest.skip("no Triton", allow_module_level=True)

from action_kernels.backends.triton import launch, order, tiles, tuned
from action_kernels.backends.triton.action_contrast import action_contrast, action_contrast_bank_gradient
from action_kernels.backends.triton.anatomical_contrast import anatomical_contrast, anatomical_contrast_gradient
from action_kernels.backends.triton.hard_negatives import hard_negatives
from action_kernels.backends.triton.launch import Target, aimed_at
from action_kernels.backends.triton.log_sum_exp import log_sum_exp, log_sum_exp_bank_gradient
from action_kernels.backends.triton.relation_negatives import relation_negatives

META = torch.device("meta")


@pytest.fixture
def sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are put into order as on a GPU."""
    monkeypatch.setattr(order, "SORTED_IN_REGISTERS", 1024)


@pytest.mark.usefixtures("sorting")
def test_launches_go_to_the_target_and_nothing_runs() -> None:
    launched: list[tuple[str, tuple[int, ...]]] = []

    def record(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        launched.append((kernel.__name__, grid))
        assert len(arguments) + len(options) > 5

    rows = torch.empty(1, 300, 32, dtype=torch.bfloat16, device="meta")
    with aimed_at(Target(90, 132, "ieee", record)):
        similarity, index = hard_negatives(rows, rows, 4, None, None, True)
    assert similarity.shape == index.shape == (1, 300, 4)
    assert len(launched) == 7
    assert all(grid and min(grid) > 0 for _, grid in launched)


SELECTION = ["_verdicts", "_finish_and_collect", "_buffered", "_order"]
ALONG = ["_student_grad", "_finish_and_collect", "_buffered", "_order"]


@pytest.mark.usefixtures("sorting")
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("operator", "queries", "rows", "features", "k", "expected"),
    [
        ("action_contrast", 1024, 8192, 64, 64, ["_prepare", "_bank_pass", "_merge_and_limit", *ALONG]),
        ("action_contrast", 65536, 16384, 128, 64, ["_prepare", "_bank_pass", "_merge_and_limit", *ALONG]),
        ("action_contrast", 6, 36, 512, 0, ["_prepare", "_bank_pass", "_merge_and_limit", *ALONG[:2]]),
        # A gradient in parts of the columns repeats the products, and would repeat the verdicts.
        ("action_contrast", 256, 8192, 512, 16, ["_prepare", "_bank_pass", "_merge_and_limit", "_verdicts", *ALONG]),
        ("hard_negatives", 1024, 1048576, 128, 512, ["_prepare", "_bank_pass", "_merge_and_limit", *SELECTION]),
        ("log_sum_exp", 1024, 8192, 128, 0, ["_prepare", "_bank_pass", "_merge_and_limit", *ALONG[:2]]),
    ],
)
def test_a_call_is_so_many_launches_and_asks_pytorch_for_memory_alone(
    operator: str, queries: int, rows: int, features: int, k: int, expected: list[str], normalize: bool
) -> None:
    launched: list[str] = []
    x, bank = (torch.empty(1, n, features, dtype=torch.bfloat16, device=META) for n in (queries, rows))
    labels = [torch.empty(1, n, dtype=torch.int64, device=META) for n in (queries, rows)] if k else [None, None]
    calls = {
        "action_contrast": lambda: action_contrast(x, x, bank, k, 0.1, 0.05, *labels, normalize, True, True),
        "hard_negatives": lambda: hard_negatives(x, bank, k, *labels, normalize),
        "log_sum_exp": lambda: log_sum_exp(x, bank, 0.1, normalize, True),
    }
    target = Target(90, 132, "ieee", lambda kernel, *_, **__: launched.append(kernel.__name__))
    with aimed_at(target), Operations() as operations:
        calls[operator]()
    assert launched == expected
    assert not operations.counts


def test_the_gradient_in_a_bank_is_so_many_launches_and_asks_pytorch_for_memory_alone() -> None:
    launched: list[str] = []
    query, bank = (torch.empty(1, n, 64, dtype=torch.bfloat16, device=META) for n in (256, 2048))
    upstream = torch.empty(1, 256, device=META)
    lse = upstream.double()
    statistics = lse.new_empty(3, *lse.shape)
    target = Target(90, 132, "ieee", lambda kernel, *_, **__: launched.append(kernel.__name__))
    with aimed_at(target), Operations() as operations:
        action_contrast_bank_gradient(upstream, query, query, bank, statistics, 0.1, 0.05, True)
        log_sum_exp_bank_gradient(upstream, query, bank, lse, 0.1, True)
    assert launched == 2 * ["_prepare", "_terms", "_bank_grad", "_finish_and_collect"]
    assert not operations.counts


def test_operators_of_an_index_are_one_launch() -> None:
    launched: list[str] = []
    query, bank = (torch.empty(1, n, 64, dtype=torch.bfloat16, device=META) for n in (256, 2048))
    index = torch.empty(1, 256, 128, dtype=torch.int64, device=META)
    labels, borders, rows = (torch.empty(1, n, dtype=torch.int64, device=META) for n in (256, 5, 2048))
    weights = torch.empty(1, 4, 4, dtype=torch.int64, device=META)
    target = Target(90, 132, "ieee", lambda kernel, *_, **__: launched.append(kernel.__name__))
    with aimed_at(target), Operations() as operations:
        loss, lse = anatomical_contrast(query, query, bank, index, 0.5, True)
        anatomical_contrast_gradient(loss, query, query, bank, index, lse, 0.5, True, True, True, False)
        relation_negatives(labels, weights, borders, rows, 512, 2**62)
    assert launched == ["_info_nce", "_info_nce_grad", "_draw"]
    assert not operations.counts


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
