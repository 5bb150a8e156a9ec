"""The native CPU module takes no tensor on trust: what does not fit the problem is refused by name, nothing written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from action_kernels.backends import cpu, cuda

needs_native = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))

G, N, M, D, K, C = 2, 5, 7, 4, 3, 2


def floats(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32)


def doubles(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def integers(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)


ROWS = {"student": (G, N, D), "teacher": (G, N, D), "query": (G, N, D), "positive": (G, N, D), "bank": (G, M, D)}


def problems() -> dict[str, dict[str, Any]]:
    """Arguments of every entry point that fit together, in its order."""
    three = {name: floats(*ROWS[name]) for name in ("student", "teacher", "bank")}
    named = {name: floats(*ROWS[name]) for name in ("query", "positive", "bank")} | {"index": integers(G, N, K)}
    return {
        "contrast": three
        | {"k": K, "query_labels": integers(G, N), "bank_labels": integers(G, M)}
        | {"student_temp": 0.1, "teacher_temp": 0.1, "normalize": True}
        | {"kl": floats(G, N), "student_lse": doubles(G, N), "teacher_lse": doubles(G, N)}
        | {"direction": floats(G, N, D), "similarity": floats(G, N, K), "index": integers(G, N, K)},
        "bank_gradient": three
        | {"grad_kl": floats(G, N), "kl": floats(G, N), "student_lse": doubles(G, N), "teacher_lse": doubles(G, N)}
        | {"student_temp": 0.1, "teacher_temp": 0.1, "normalize": True, "grad_bank": floats(G, M, D)},
        "gather": named | {"temp": 0.5, "normalize": True, "loss": floats(G, N), "lse": doubles(G, N)},
        "gather_gradient": named
        | {"grad_similarity": None, "grad_loss": floats(G, N), "lse": doubles(G, N), "temp": 0.5, "normalize": True}
        | {"grad_query": floats(G, N, D), "grad_positive": floats(G, N, D), "grad_bank": floats(G, M, D)},
        "relation_negatives": {"query_labels": integers(G, N), "thresholds": integers(G, C, C)}
        | {"class_start": integers(G, C + 1), "rows": integers(G, M), "seed": 1, "index": integers(G, N, K)},
    }


@pytest.fixture(params=["exchange", "attributes"])
def reader(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways in which the module reads a tensor: PyTorch's exchange interface, attributes where there is none."""
    cpu._native.use_attributes(request.param == "attributes")
    yield
    cpu._native.use_attributes(False)


def call(entry: str, arguments: dict[str, Any]) -> None:
    getattr(cpu._native, entry)(*arguments.values(), (1, 1 << 20))


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
TENSORS = [(e, name) for e, arguments in problems().items() for name, x in arguments.items() if isinstance(x, Tensor)]


@needs_native
@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("entry", problems())
def test_what_fits_is_taken(entry: str) -> None:
    call(entry, problems()[entry])


@needs_native
@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(("entry", "name"), TENSORS)
def test_what_does_not_fit_is_refused_by_name(entry: str, name: str) -> None:
    for fault, damage in FAULTS.items():
        if fault.startswith("a row") and (entry, name) in (("gather", "bank"), ("relation_negatives", "rows")):
            continue  # a bank of another length is as good
        arguments = problems()[entry]
        outputs = [x for x in arguments.values() if isinstance(x, Tensor)]
        arguments[name] = damage(arguments[name])
        with pytest.raises(ValueError, match=r"\w+ must be .*, got ") as error:
            call(entry, arguments)
        # Sizes come from the queries, the bank and the index: one of them that is wrong shows in its neighbours.
        sizing = {"student", "query", "bank", "index", "thresholds", "rows"}
        assert name in sizing or str(error.value).startswith(f"{name} must be"), f"{fault}: {error.value}"
        assert not any(x.any() for x in outputs), fault


@needs_native
@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(("entry", "name"), [(e, n) for e, n in TENSORS if n not in ROWS])
def test_all_but_rows_must_be_contiguous(entry: str, name: str) -> None:
    arguments = problems()[entry]
    x = arguments[name]
    arguments[name] = torch.stack([x, x], -1)[..., 0]
    with pytest.raises(ValueError, match=f"^{name} must be contiguous .* with strides"):
        call(entry, arguments)


@needs_native
@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(("entry", "name"), [("contrast", "kl"), ("contrast", "bank_labels"), ("gather", "lse")])
def test_a_missing_tensor_is_named(entry: str, name: str) -> None:
    arguments = problems()[entry] | {name: None}
    with pytest.raises(ValueError, match=f"^{name} must be contiguous .*, got None"):
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
        arguments = problems()["gather"] | {n: torch.randn(ROWS[n]) for n in ("query", "positive", "bank")}
        results = []
        for rows in (x, x.detach().as_subclass(Tensor).float().contiguous()):
            arguments |= {name: rows, "loss": floats(G, N), "lse": doubles(G, N)}
            call("gather", arguments)
            results.append(arguments["loss"])
        assert torch.equal(*results) and results[0].all(), kind


@needs_native
@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("value", [0, "bank", (1, 0, (G, M, D), (M * D, D, 1), True), np.zeros((G, M, D), np.float32)])
@pytest.mark.parametrize("name", ["query", "bank", "lse"])
def test_what_is_no_tensor_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be a tensor, got \S*{type(value).__name__}$"):
        call("gather", problems()["gather"] | {name: value})


@needs_native
@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("name", ["query", "bank", "lse"])
def test_a_tensor_without_memory_is_refused(name: str) -> None:
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(problems()["gather"][name])
    sparse = torch.zeros(G, N, D).to_sparse()
    for x in (fake, sparse):
        arguments = problems()["gather"] | {name: x}
        with pytest.raises((ValueError, RuntimeError)):
            call("gather", arguments)
        assert not any(arguments[n].any() for n in ("loss", "lse") if n != name)


@needs_native
@pytest.mark.usefixtures("reader")
def test_the_operators_below_the_checked_functions_are_safe() -> None:
    """A registered operator called by its name meets the same checks."""
    ops = torch.ops.action_kernels
    student, bank = floats(1, N, D), floats(1, M, D)
    with pytest.raises(ValueError, match=r"^teacher must be .*\[1, 5, 4\], got float32 \[1, 4, 4\]"):
        ops.action_contrast(student, floats(1, N - 1, D), bank, K, 0.1, 0.1, None, None, True, True)
    with pytest.raises(ValueError, match=r"^bank must be .*\[1, 7, 4\], got float32 \[1, 7, 3\]"):
        ops.hard_negatives(student, floats(1, M, D - 1), K, None, None, True)
    with pytest.raises(ValueError, match="^lse must be contiguous float64"):
        ops.anatomical_contrast_gradient(
            floats(1, N), student, student, bank, integers(1, N, K), floats(1, N), 0.5, True, True, True, True
        )
    with pytest.raises(ValueError, match="^grad_kl must be contiguous float32"):
        ops.contrast_bank_gradient(
            doubles(1, N), student, student, bank, floats(1, N), doubles(1, N), doubles(1, N), 0.1, 0.1, True
        )


@pytest.mark.parametrize(
    ("damage", "got"),
    [
        (lambda x: x.double(), "got torch.float64"),
        (lambda x: x.bfloat16(), "got torch.bfloat16"),
        (lambda x: x.mT, r"with strides \(20, 1, 4\)"),
        (lambda x: x.to("meta"), "on meta"),
    ],
)
def test_an_address_for_a_cuda_kernel_is_that_of_what_it_takes(damage: Callable[[Tensor], Tensor], got: str) -> None:
    x = floats(G, N, D)
    assert cuda._address("merge", 0, "F", x, x.get_device()) == x.data_ptr()
    with pytest.raises(ValueError, match=f"argument 4 of the CUDA kernel merge must be a contiguous.*{got}"):
        cuda._address("merge", 4, "F", damage(x), x.get_device())


def test_an_allocation_of_another_dtype_never_reaches_a_cuda_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before the library is touched."""
    monkeypatch.setattr(cuda, "_load", lambda: None)
    x = floats(G, N, D)
    with pytest.raises(ValueError, match="argument 0 of the CUDA kernel merge"):
        cuda._launch("merge", x, doubles(5, 1, G, N), 1, G * N, 0.1, 0.1, floats(G, N), doubles(G, N), doubles(G, N))
    with pytest.raises(ValueError, match="argument 4 of the CUDA kernel relation_negatives"):
        cuda._launch(
            "relation_negatives", x, *(integers(2, 2) for _ in range(4)), integers(2, 2, 2).int(), 1, 1, 1, 1, 1, 0
        )
