"""The native CPU module takes no tensor on trust: what does not fit the problem is refused by name, nothing written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import pytest
import torch
from kernel_functions import OPERATORS, operator_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from action_kernels.backends import cpu, native

needs_native = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))

G, N, M, D, K, C = 2, 5, 7, 4, 3, 2


def floats(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32)


def doubles(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def integers(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)


ROWS = {"student": (G, N, D), "teacher": (G, N, D), "query": (G, N, D), "positive": (G, N, D), "bank": (G, M, D)}
RESULTS = {"kl", "student_grad", "query_grad", "positive_grad", "bank_grad", "similarity", "loss"}
DOUBLES = {"statistics", "lses", "lse"}
SHAPES = ROWS | {
    "query_labels": (G, N),
    "bank_labels": (G, M),
    "index": (G, N, K),
    "rows": (G, M),
    "thresholds": (G, C, C),
    "class_start": (G, C + 1),
    "kl": (G, N),
    "grad_kl": (G, N),
    "loss": (G, N),
    "grad_loss": (G, N),
    "grad_lse": (G, N),
    "statistics": (3, G, N),
    "lses": (2, G, N),
    "lse": (G, N),
    "similarity": (G, N, K),
    "grad_similarity": (G, N, K),
    "student_grad": (G, N, D),
    "query_grad": (G, N, D),
    "positive_grad": (G, N, D),
    "bank_grad": (G, M, D),
}
FLOATS = set(ROWS) | RESULTS | {"grad_kl", "grad_loss", "grad_lse", "grad_similarity"}
NUMBERS = {"student_temp": 0.1, "teacher_temp": 0.1, "temp": 0.5, "normalize": True, "seed": 1}
NUMBERS |= {"threads": 1, "scratch_bytes": 1 << 20}


def params_of() -> dict[str, type]:
    """Every launcher of the CPU backend with its parameters."""
    found = {}
    for operator in OPERATORS:
        for name, value in vars(operator_file("cpu", operator)).items():
            if name.endswith("Params"):
                found[re.sub(r"(?<!^)(?=[A-Z])", "_", name.removesuffix("Params")).lower()] = value
    return found


LAUNCHERS = {} if cpu.unavailable() else params_of()


def problem(launcher: str) -> dict[str, Any]:
    """Arguments that fit together."""
    arguments = {}
    for name in LAUNCHERS[launcher]._fields:
        if name in NUMBERS:
            arguments[name] = NUMBERS[name]
        else:
            make = doubles if name in DOUBLES else floats if name in FLOATS else integers
            arguments[name] = make(*SHAPES[name])
    return arguments


@pytest.fixture(params=["exchange", "attributes"])
def reader(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways in which the module reads a tensor: PyTorch's exchange interface, attributes where there is none."""
    native.module().read_attributes_only(request.param == "attributes")
    yield
    native.module().read_attributes_only(False)


def call(launcher: str, arguments: dict[str, Any]) -> None:
    params = LAUNCHERS[launcher]
    native.bind(native.module().cpu_launchers(), launcher, params)(params(**arguments))


def another_dtype(x: Tensor) -> Tensor:
    return x.to(torch.float64 if x.dtype == torch.float32 else torch.float32)


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "another dtype": another_dtype,
    "int32": lambda x: x.int(),
    "a row too few": lambda x: x[:, :-1].contiguous(),
    "a row too many": lambda x: torch.cat([x, x[:, :1]], 1),
    "a group too few": lambda x: x[:1],
    "flat": lambda x: x.flatten(),
    "a dimension more": lambda x: x.reshape(*x.shape, 1, 1),
    "elsewhere": lambda x: x.to("meta"),
}
TENSORS = [(e, name) for e in LAUNCHERS for name, x in problem(e).items() if isinstance(x, Tensor)]


@needs_native
@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("entry", LAUNCHERS)
def test_what_fits_is_taken(entry: str) -> None:
    call(entry, problem(entry))


@needs_native
@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(("entry", "name"), TENSORS)
def test_what_does_not_fit_is_refused_by_name(entry: str, name: str) -> None:
    for fault, damage in FAULTS.items():
        if fault.startswith("a row") and (entry, name) in (
            ("action_contrast_student_gradient", "bank"),
            ("anatomical_contrast", "bank"),
            ("log_sum_exp", "bank"),
            ("relation_negatives", "rows"),
        ):
            continue  # a bank of another length is as good
        arguments = problem(entry)
        outputs = [x for x in arguments.values() if isinstance(x, Tensor)]
        arguments[name] = damage(arguments[name])
        with pytest.raises(ValueError, match=rf"^{entry}: \w+ must be .*, got ") as error:
            call(entry, arguments)
        # Sizes come from the queries, the bank and the index: one of them that is wrong shows in its neighbours.
        sizing = {"student", "query", "bank", "index", "thresholds", "rows"}
        assert name in sizing or f"{entry}: {name} must be" in str(error.value), f"{fault}: {error.value}"
        assert not any(x.any() for x in outputs), fault


@needs_native
@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(("entry", "name"), [(e, n) for e, n in TENSORS if n not in ROWS])
def test_all_but_rows_must_be_contiguous(entry: str, name: str) -> None:
    arguments = problem(entry)
    x = arguments[name]
    arguments[name] = torch.stack([x, x], -1)[..., 0]
    with pytest.raises(ValueError, match=f"^{entry}: {name} must be contiguous .* with strides"):
        call(entry, arguments)


@needs_native
@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(
    ("entry", "name"), [("action_contrast", "kl"), ("action_contrast", "bank_labels"), ("anatomical_contrast", "lse")]
)
def test_a_missing_tensor_is_named(entry: str, name: str) -> None:
    arguments = problem(entry) | {name: None}
    with pytest.raises(ValueError, match=f"^{entry}: {name} must be contiguous .*, got None"):
        call(entry, arguments)


def row_views(*shape: int) -> dict[str, Tensor]:
    """Tensors of one shape and the same random elements, laid out or made in other ways."""
    x = torch.randn(shape)
    padded = torch.full((shape[0], shape[1] + 2, shape[2] + 3), torch.nan)
    padded[:, 1:-1, 2:-1] = x
    spread = torch.stack([x, torch.full_like(x, torch.nan)], -1)
    return {
        "plain": x,
        "within another": padded[:, 1:-1, 2:-1],
        "another order": x.mT.contiguous().mT,
        "every second element": spread[..., 0],
        "a parameter": torch.nn.Parameter(x.clone()),
        "of a subclass": x.clone().as_subclass(type("Sub", (Tensor,), {})),
        "half": x.half(),
        "bfloat16": x.bfloat16(),
    }


@needs_native
@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("name", ["query", "positive", "bank"])
def test_rows_are_read_wherever_they_lie(name: str) -> None:
    for kind, x in row_views(*ROWS[name]).items():
        arguments = problem("anatomical_contrast") | {n: torch.randn(ROWS[n]) for n in ("query", "positive", "bank")}
        results = []
        for rows in (x, x.detach().as_subclass(Tensor).float().contiguous()):
            arguments |= {name: rows, "loss": floats(G, N), "lse": doubles(G, N)}
            call("anatomical_contrast", arguments)
            results.append(arguments["loss"])
        assert torch.equal(*results) and results[0].all(), kind


@needs_native
@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("value", [0, "bank", (1, 0, (G, M, D), (M * D, D, 1), True), np.zeros((G, M, D), np.float32)])
@pytest.mark.parametrize("name", ["query", "bank", "lse"])
def test_what_is_no_tensor_is_refused(name: str, value: object) -> None:
    message = rf"^anatomical_contrast: {name} must be a Tensor, got \S*{type(value).__name__}$"
    with pytest.raises(TypeError, match=message):
        call("anatomical_contrast", problem("anatomical_contrast") | {name: value})


@needs_native
@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("name", ["query", "bank", "lse"])
def test_a_tensor_without_memory_is_refused(name: str) -> None:
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(problem("anatomical_contrast")[name])
    sparse = torch.zeros(G, N, D).to_sparse()
    for x in (fake, sparse):
        arguments = problem("anatomical_contrast") | {name: x}
        with pytest.raises((ValueError, RuntimeError)):
            call("anatomical_contrast", arguments)
        assert not any(arguments[n].any() for n in ("loss", "lse") if n != name)


@needs_native
@pytest.mark.usefixtures("reader")
def test_the_operators_below_the_checked_functions_are_safe() -> None:
    """A registered operator called by its name meets the same checks."""
    ops = torch.ops.action_kernels
    student, bank = floats(1, N, D), floats(1, M, D)
    with pytest.raises(ValueError, match=r"^action_contrast: teacher must be .*\[1, 5, 4\], got float32 \[1, 4, 4\]"):
        ops.action_contrast(student, floats(1, N - 1, D), bank, K, 0.1, 0.1, None, None, True, True, True)
    with pytest.raises(ValueError, match=r"^hard_negatives: bank must be .*\[1, 7, 4\], got float32 \[1, 7, 3\]"):
        ops.hard_negatives(student, floats(1, M, D - 1), K, None, None, True)
    with pytest.raises(ValueError, match="^anatomical_contrast_gradient: lse must be contiguous float64"):
        ops.anatomical_contrast_gradient(
            floats(1, N), student, student, bank, integers(1, N, K), floats(1, N), 0.5, True, True, True, True, "cpu"
        )
    with pytest.raises(ValueError, match="^action_contrast_bank_gradient: grad_kl must be contiguous float32"):
        ops.action_contrast_bank_gradient(
            doubles(1, N), student, student, bank, doubles(3, 1, N), 0.1, 0.1, True, "cpu"
        )


@needs_native
def test_other_parameters_than_the_librarys_are_refused_when_it_is_bound() -> None:
    launchers = native.module().cpu_launchers()
    params = LAUNCHERS["relation_negatives"]
    fields = get_type_hints(params)
    others = {
        "one too few": {name: hint for name, hint in fields.items() if name != "seed"},
        "one too many": {**fields, "more": int},
        "another name": {name + "s" * (name == "seed"): hint for name, hint in fields.items()},
        "another kind": {name: float if name == "seed" else hint for name, hint in fields.items()},
        "another order": dict(reversed(fields.items())),
    }
    native.bind(launchers, "relation_negatives", params)
    for kind, hints in others.items():
        with pytest.raises(ImportError, match="relation_negatives takes other parameters.*build it from these sources"):
            native.bind(launchers, "relation_negatives", NamedTuple("Other", hints.items()))
            pytest.fail(kind)


@needs_native
@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [("query_labels", 3, "Tensor, got int"), ("seed", "x", "int, got str"), ("seed", 1.5, "int, got float")],
)
def test_a_value_of_another_kind_is_named(name: str, value: object, kind: str) -> None:
    with pytest.raises(TypeError, match=f"^relation_negatives: {name} must be a {kind}"):
        call("relation_negatives", problem("relation_negatives") | {name: value})
