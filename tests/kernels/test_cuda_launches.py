"""What a call of the CUDA backend launches, by name, for how much memory it asks, and that PyTorch does nothing more.

Without a GPU the kernels are those compiled for the CPU.
"""

from __future__ import annotations

import os

import pytest
import torch
from cuda_calls import launches, library
from kernel_functions import Kernels, operator_file
from operations import Operations
from torch import Tensor

import action_kernels
from action_kernels.backends import native

DEVICE = "cpu" if os.environ.get("ACTION_CUDA_HOST") else "cuda"

pytestmark = [pytest.mark.skipif(action_kernels.list_backends()["cuda"] != "ready", reason="no CUDA kernels")]
pytestmark += [pytest.mark.gpu] * (DEVICE == "cuda")

QUERIES, ROWS = 5, 320
FIRST = ["prepare", "bank_pass"]
LIMITED = [*FIRST, "merge_and_limit"]
SELECTION = ["finish_and_collect", "buffered"]


def inputs(features: int, k: int) -> tuple[Tensor, Tensor, list[Tensor] | list[None]]:
    query, bank = (torch.randn(1, n, features, dtype=torch.bfloat16, device=DEVICE) for n in (QUERIES, ROWS))
    return query, bank, [torch.randint(2, (1, n), device=DEVICE) for n in (QUERIES, ROWS)] if k else [None, None]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("operator", "features", "k", "allocations", "expected"),
    [
        ("action_contrast", 24, 3, 5, [*LIMITED, "student_grad", *SELECTION]),
        ("action_contrast", 24, 0, 3, [*FIRST, "student_grad", "finish"]),
        (
            "action_contrast",
            24,
            300,
            5,
            [*FIRST, "student_grad", "finish", "buffered", "order"],
        ),  # no limits for so many
        ("action_contrast", 200, 3, 5, [*LIMITED, "student_grad", *SELECTION]),  # columns that blocks share
        ("hard_negatives", 24, 3, 3, [*LIMITED, "verdicts", *SELECTION]),
        ("hard_negatives", 24, 300, 3, ["prepare", "buffered", "order"]),
        ("log_sum_exp", 24, 0, 3, [*FIRST, "student_grad", "finish"]),
    ],
)
def test_forward_is_so_many_launches_and_asks_pytorch_for_results_and_one_workspace(
    operator: str, features: int, k: int, allocations: int, expected: list[str], normalize: bool
) -> None:
    kernels = Kernels("cuda")
    query, bank, labels = inputs(features, k)
    calls = {
        "action_contrast": lambda: kernels.action_contrast(
            query, query, bank, k, 0.1, 0.05, *labels, normalize, True, False
        ),
        "hard_negatives": lambda: kernels.hard_negatives(query, bank, k, *labels, normalize),
        "log_sum_exp": lambda: kernels.log_sum_exp(query, bank, 0.1, normalize, True),
    }
    with Operations() as operations:
        calls[operator]()
    assert launches() == expected
    assert not operations.counts
    assert operations.allocations == allocations


def test_statistics_for_a_gradient_in_the_bank_are_one_allocation_more() -> None:
    query, bank, labels = inputs(24, 3)
    with Operations() as operations:
        result = Kernels("cuda").action_contrast(query, query, bank, 3, 0.1, 0.05, *labels, True, True, True)
    assert operations.allocations == 6 and result.statistics.shape == (3, 1, QUERIES)


def test_without_the_gradient_verdicts_are_a_pass_of_their_own() -> None:
    query, bank, labels = inputs(24, 3)
    Kernels("cuda").action_contrast(query, query, bank, 3, 0.1, 0.05, *labels, True, False, False)
    assert launches() == [*LIMITED, "verdicts", *SELECTION]


def test_a_gradient_behind_the_forward_pass() -> None:
    kernels = Kernels("cuda")
    query, bank, _ = inputs(24, 0)
    upstream, lse = torch.ones(1, QUERIES, device=DEVICE), torch.ones(1, QUERIES, dtype=torch.float64, device=DEVICE)
    statistics, lses = (torch.ones(n, 1, QUERIES, dtype=torch.float64, device=DEVICE) for n in (3, 2))
    temps = 0.1, 0.05
    for walk, call in (
        (
            "student_grad",
            lambda: kernels.action_contrast_student_gradient(query, query, bank, lses, *temps, True),
        ),
        (
            "bank_grad",
            lambda: kernels.action_contrast_bank_gradient(upstream, query, query, bank, statistics, *temps, True),
        ),
        ("bank_grad", lambda: kernels.log_sum_exp_bank_gradient(upstream, query, bank, lse, 0.1, True)),
    ):
        with Operations() as operations:
            call()
        assert launches() == ["prepare", "query_terms", walk, "finish"]
        assert not operations.counts
        assert operations.allocations == 2


def test_indexed_rows() -> None:
    kernels = Kernels("cuda")
    query, positive, bank = (torch.randn(1, n, 24, device=DEVICE) for n in (5, 5, 40))
    index = torch.randint(40, (1, 5, 3), device=DEVICE)
    with Operations() as operations:
        loss, lse = kernels.anatomical_contrast(query, positive, bank, index, 0.5, True)
    assert launches() == ["prepare", "info_nce"]
    assert not operations.counts and operations.allocations == 3
    with Operations() as operations:
        kernels.anatomical_contrast_gradient(loss, query, positive, bank, index, lse, 0.5, True, True, True, False)
    assert launches() == ["prepare", "info_nce_grad"]
    assert not operations.counts and operations.allocations == 3
    kernels.anatomical_contrast_gradient(loss, query, positive, bank, index, lse, 0.5, True, True, True, True)
    assert launches() == ["prepare", "info_nce_grad", "indexed_bank_grad"]
    similarity = torch.randn(1, 5, 3, device=DEVICE)
    kernels.hard_negatives_gradient(similarity, query, bank, index, True, True, True)
    assert launches() == ["prepare", "selected_query_grad", "indexed_bank_grad"]


def test_memory_at_the_design_target() -> None:
    """Forward with the gradient and a selection takes its copies of the rows and, at a time, one pass's memory."""
    queries, rows, features, k = 65536, 16384, 128, 64
    student, bank = (torch.empty(1, n, features, dtype=torch.bfloat16, device=DEVICE) for n in (queries, rows))
    query_labels, bank_labels = (torch.empty(1, n, dtype=torch.int64, device=DEVICE) for n in (queries, rows))
    kind = operator_file("cuda", "action_contrast").ActionContrastParams
    params = kind(
        student=student,
        teacher=student,
        bank=bank,
        query_labels=query_labels,
        bank_labels=bank_labels,
        student_temp=0.1,
        teacher_temp=0.1,
        normalize=True,
        kl=torch.empty(1, queries, device=DEVICE),
        statistics=None,
        student_grad=torch.empty(1, queries, features, device=DEVICE),
        similarity=torch.empty(1, queries, k, device=DEVICE),
        index=torch.empty(1, queries, k, dtype=torch.int64, device=DEVICE),
        tf32=False,
        workspace=None,
    )
    with library().on_device(student.device):
        size = native.bind(library().launchers(), "action_contrast", kind).workspace(params)
    copies = 2 * (2 * queries + rows) * features + 4 * (2 * queries + 2 * rows)  # with scales and labels
    kept = queries * (12 * 4 + 2 * 4) + queries // 64 * 4  # terms, limits, what was found; blocks that have arrived
    words, partial = queries * (8 * (2 * k + 32) + 4), queries * features * 4
    processors = 4 if DEVICE == "cpu" else torch.cuda.get_device_properties(0).multi_processor_count
    buffers = min(queries // 64, 4 * processors) * 64 * (k + 2 * 64 + 64) * 8
    expected = copies + kept + words + max(partial, buffers)
    assert expected <= size < expected + 40 * 512  # pieces are aligned, with gaps where accesses are checked
