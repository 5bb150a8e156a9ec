"""What a call of the CUDA backend launches, by name, and that PyTorch does no work of its own on the way.

Without a GPU the kernels are those compiled for the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import NamedTuple

import pytest
import torch
from kernel_functions import Kernels
from operations import Operations
from torch import Tensor

import action_kernels

DEVICE = "cpu" if os.environ.get("ACTION_CUDA_HOST") else "cuda"

pytestmark = [pytest.mark.skipif(action_kernels.list_backends()["cuda"] != "ready", reason="no CUDA kernels")]
pytestmark += [pytest.mark.gpu] * (DEVICE == "cuda")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of launchers, as they are called."""
    names: list[str] = []

    def recorder(name: str, launch: Callable[..., None]) -> Callable[..., None]:
        def record(params: NamedTuple, x: Tensor) -> None:
            names.append(name)
            launch(params, x)

        return record

    package = import_module("action_kernels.backends.cuda")
    for file in iter_modules(package.__path__, f"{package.__name__}."):
        for name, value in list(vars(import_module(file.name)).items()):
            if getattr(value, "__qualname__", "") == "bind.<locals>.launch":
                monkeypatch.setattr(f"{file.name}.{name}", recorder(name.removeprefix("_"), value))
    return names


FIRST = ["prepare", "bank_pass", "merge_and_limit"]
SELECTION = ["finish_and_collect", "buffered"]


@pytest.mark.parametrize(
    ("operator", "features", "k", "normalize", "expected"),
    [
        ("action_contrast", 24, 3, True, [*FIRST, "contrast_gradient", *SELECTION]),
        ("action_contrast", 24, 3, False, [*FIRST, "contrast_gradient", *SELECTION]),
        ("action_contrast", 24, 0, True, [*FIRST, "contrast_gradient", "finish_and_collect"]),
        (
            "action_contrast",
            24,
            300,
            True,
            [*FIRST, "contrast_gradient", "finish_and_collect", "buffered", "order_keys"],
        ),
        ("action_contrast", 200, 3, True, [*FIRST, "contrast_gradient", *SELECTION]),  # columns that blocks share
        ("hard_negatives", 24, 3, True, [*FIRST, "verdicts", *SELECTION]),
        ("hard_negatives", 24, 3, False, [*FIRST, "verdicts", *SELECTION]),
        ("hard_negatives", 24, 300, True, ["prepare", "buffered", "order_keys"]),  # no limits for so many
        ("log_sum_exp", 24, 0, True, [*FIRST, "contrast_gradient", "finish_and_collect"]),
    ],
)
def test_a_call_is_so_many_launches_and_asks_pytorch_for_memory_alone(
    launched: list[str], operator: str, features: int, k: int, normalize: bool, expected: list[str]
) -> None:
    kernels = Kernels("cuda")
    query, bank = (torch.randn(1, n, features, dtype=torch.bfloat16, device=DEVICE) for n in (5, 320))
    labels = [torch.randint(2, (1, n), device=DEVICE) for n in (5, 320)] if k else [None, None]
    calls = {
        "action_contrast": lambda: kernels.action_contrast(query, query, bank, k, 0.1, 0.05, *labels, normalize, True),
        "hard_negatives": lambda: kernels.hard_negatives(query, bank, k, *labels, normalize),
        "log_sum_exp": lambda: kernels.log_sum_exp(query, bank, 0.1, True, True),
    }
    with Operations() as operations:
        calls[operator]()
    assert launched == expected
    assert not operations.counts


def test_indexed_rows_are_prepared_in_one_launch(launched: list[str]) -> None:
    kernels = Kernels("cuda")
    query, positive, bank = (torch.randn(1, n, 24, device=DEVICE) for n in (5, 5, 40))
    kernels.anatomical_contrast(query, positive, bank, torch.randint(40, (1, 5, 3), device=DEVICE), 0.5, True)
    assert launched == ["prepare", "info_nce"]
