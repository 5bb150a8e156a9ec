"""The CUDA launchers take nothing on trust: what does not fit is refused by name before a kernel sees an address.

Their arguments are recorded from calls of the operators. Without a GPU the kernels are those compiled for the CPU.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from cuda_calls import library
from kernel_functions import OPERATORS, Kernels, operator_file
from torch import Tensor

import action_kernels
from action_kernels.backends import native

HOST = os.environ.get("ACTION_CUDA_HOST")
DEVICE = "cpu" if HOST else "cuda"

pytestmark = [pytest.mark.skipif(action_kernels.list_backends()["cuda"] != "ready", reason="no CUDA kernels")]
pytestmark += [pytest.mark.gpu] * (not HOST)

LAUNCHERS = (
    "action_contrast",
    "action_contrast_student_gradient",
    "action_contrast_bank_gradient",
    "anatomical_contrast",
    "anatomical_contrast_gradient",
    "hard_negatives",
    "hard_negatives_gradient",
    "log_sum_exp",
    "log_sum_exp_bank_gradient",
    "relation_negatives",
)
IN_PLACE = {"student", "teacher", "query", "positive", "bank"}  # raw rows are read in place, whatever their strides
# A bank of another length is as good, and so are rows to draw from.
ANY_LENGTH = {
    ("action_contrast_student_gradient", "bank"),
    ("anatomical_contrast", "bank"),
    ("log_sum_exp", "bank"),
    ("relation_negatives", "rows"),
}


def launcher_of(params: NamedTuple) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(params).__name__.removesuffix("Params")).lower()


@cache
def recorded() -> dict[str, NamedTuple]:
    """Arguments that fit together: those of the last call of each launcher, and a workspace for it."""
    found: dict[str, NamedTuple] = {}

    def recorder(launch: Callable[[NamedTuple], None]) -> Callable[[NamedTuple], None]:
        def record(params: NamedTuple) -> None:
            found[launcher_of(params)] = params
            launch(params)

        return record

    with pytest.MonkeyPatch.context() as patch:
        for operator in OPERATORS:
            module = operator_file("cuda", operator)
            for name, value in list(vars(module).items()):
                if getattr(value, "__qualname__", "") == "bind.<locals>.launch":
                    patch.setattr(module, name, recorder(value))
        run_every_operator()
    for name, params in found.items():
        if "workspace" in params._fields:
            workspace = torch.empty(bound(name, params).workspace(params), dtype=torch.uint8, device=DEVICE)
            found[name] = params._replace(workspace=workspace)
    return found


def run_every_operator() -> None:
    """With everything that a launcher can be given."""
    kernels = Kernels("cuda")
    groups, queries, rows, k, classes = 2, 5, 300, 3, 2
    student, teacher = torch.randn(2, groups, queries, 24).bfloat16().to(DEVICE)
    bank = torch.randn(groups, rows, 24).bfloat16().to(DEVICE)
    query_labels = torch.randint(classes, (groups, queries)).to(DEVICE)
    bank_labels = torch.randint(classes, (groups, rows)).to(DEVICE)
    temps, labels = (0.1, 0.05), (query_labels, bank_labels)
    result = kernels.action_contrast(student, teacher, bank, k, *temps, *labels, False, True, True)
    kernels.hard_negatives(student, bank, k, *labels, False)
    kernels.hard_negatives_gradient(result.similarity, student, bank, result.index, True, True, True)
    loss, lse = kernels.anatomical_contrast(student, teacher, bank, result.index, 0.5, True)
    kernels.anatomical_contrast_gradient(loss, student, teacher, bank, result.index, lse, 0.5, True, True, True, True)
    thresholds = torch.ones(groups, classes, classes, dtype=torch.int64).cumsum(-1).to(DEVICE)
    start = torch.tensor([[0, 100, rows]] * groups, device=DEVICE)
    order = torch.arange(rows, device=DEVICE).repeat(groups, 1)
    kernels.relation_negatives(query_labels, thresholds, start, order, k, 1)
    lse, _ = kernels.log_sum_exp(student, bank, 0.1, True, True)
    kernels.log_sum_exp_bank_gradient(result.kl, student, bank, lse, 0.1, True)
    kernels.action_contrast_student_gradient(student, teacher, bank, result.statistics[:2], *temps, True)
    kernels.action_contrast_bank_gradient(result.kl, student, teacher, bank, result.statistics, *temps, True)


def bound(launcher: str, params: NamedTuple) -> Any:
    return native.bind(library().launchers(), launcher, type(params))


def refusal(launcher: str, **others: Any) -> str:
    """What the launcher says to its recorded arguments with others in place of some; nothing may be written."""
    params = recorded()[launcher]._replace(**others)
    tensors = [x for x in params if isinstance(x, Tensor) and not x.is_meta]
    before = [x.clone() for x in tensors]
    with pytest.raises(ValueError, match=f"^{launcher}: ") as error, library().on_device(tensors[0].device):
        bound(launcher, params)(params)
    for x, copy in zip(tensors, before, strict=True):
        torch.testing.assert_close(x, copy, rtol=0, atol=0, equal_nan=True)
    return str(error.value)


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "another dtype": lambda x: x.to(torch.float64 if x.dtype != torch.float64 else torch.float32),
    "int32": lambda x: x.to(torch.int32),
    "a group too few": lambda x: x[:1],
    "a row too few": lambda x: x[:, :-1].contiguous(),
    "a row too many": lambda x: torch.cat([x, x[:, :1]], 1),
    "flat": lambda x: x.flatten(),
    "a dimension more": lambda x: x.unsqueeze(-1),
    "elsewhere": lambda x: x.to("meta"),
    "with gaps": lambda x: torch.stack([x, x], -1)[..., 0],
}


def test_every_launcher_is_recorded() -> None:
    assert sorted(recorded()) == sorted(library().launchers()) == sorted(LAUNCHERS)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_tensor_that_does_not_fit_is_refused(launcher: str, fault: str) -> None:
    for name, x in recorded()[launcher]._asdict().items():
        if not isinstance(x, Tensor) or (x.dim() < 2 and fault not in ("another dtype", "int32", "elsewhere")):
            continue
        if (fault == "with gaps" and name in IN_PLACE) or (
            fault.startswith("a row") and (launcher, name) in ANY_LENGTH
        ):
            continue
        said = refusal(launcher, **{name: FAULTS[fault](x)})
        assert " must be " in said and ", got " in said, f"{name}: {said}"
        if fault == "with gaps":
            assert f"{launcher}: {name} must be contiguous" in said, said


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_tensor_that_is_missing_is_named(launcher: str) -> None:
    params = recorded()[launcher]
    for name in params._fields:
        if type(params).__annotations__[name] == "Tensor":
            assert ", got None" in refusal(launcher, **{name: None})


@pytest.mark.parametrize("launcher", ["action_contrast", "hard_negatives"])
def test_labels_come_in_pairs(launcher: str) -> None:
    assert "query_labels must be" in refusal(launcher, query_labels=None)
    assert "bank_labels must be" in refusal(launcher, bank_labels=None)


@pytest.mark.parametrize("launcher", ["anatomical_contrast_gradient", "hard_negatives_gradient"])
def test_the_gradient_in_the_bank_needs_sorted_entries(launcher: str) -> None:
    for name in ("order", "starts"):
        assert f"{name} must be" in refusal(launcher, **{name: None})


@pytest.mark.parametrize("launcher", [name for name in LAUNCHERS if name != "relation_negatives"])
def test_a_workspace_is_as_large_as_the_launcher_says(launcher: str) -> None:
    params = recorded()[launcher]
    size = params.workspace.numel()
    assert size == bound(launcher, params).workspace(params) > 0
    assert f"workspace must be as large as the launcher says, at least [{size}]" in refusal(
        launcher, workspace=params.workspace[:-1]
    )
    assert "workspace must be contiguous" in refusal(launcher, workspace=torch.cat([params.workspace] * 2)[::2])
    assert "workspace must be a tensor with 1 dimensions, got None" in refusal(launcher, workspace=None)


def test_a_launcher_names_what_does_not_fit_when_it_is_asked_for_a_size() -> None:
    params = recorded()["action_contrast"]._replace(kl=None, workspace=None)
    with pytest.raises(ValueError, match="^action_contrast: kl must be .*, got None"):
        bound("action_contrast", params).workspace(params)
    drawn = recorded()["relation_negatives"]
    assert bound("relation_negatives", drawn).workspace(drawn) == 0


def test_a_whole_bank_has_rows() -> None:
    params = recorded()["log_sum_exp"]
    assert "there must be queries, and 1 to 2^32 - 1 bank rows" in refusal("log_sum_exp", bank=params.bank[:, :0])


def test_a_workspace_may_begin_anywhere() -> None:
    params = recorded()["log_sum_exp"]
    results = []
    for shift in (0, 1, 129):
        workspace = torch.empty(params.workspace.numel() + shift, dtype=torch.uint8, device=DEVICE)[shift:]
        lse = torch.empty_like(params.lse)
        moved = params._replace(lse=lse, workspace=workspace)
        with library().on_device(lse.device):
            bound("log_sum_exp", moved)(moved, library().current_stream())
        results.append(lse)
    assert all(torch.equal(x, results[0]) for x in results)


def test_a_library_that_was_built_from_other_headers_is_refused() -> None:
    sizes = (ctypes.c_int64 * 5)(1, 1)  # of a tensor and a launcher, before the table
    with pytest.raises(ValueError, match="built from other sources"):
        native.module().launchers_at(ctypes.addressof(sizes))
