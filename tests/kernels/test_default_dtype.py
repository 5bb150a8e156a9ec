"""Neither ``torch.set_default_dtype`` nor a default device shows in any result: every allocation names both."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import test_cpu_fuzz
import torch
from kernel_functions import OPERATORS, operator_file
from torch import Tensor

import action_kernels
from action_kernels.backends import cpu

PACKAGE = Path(action_kernels.__file__).parent
FACTORIES = set("empty zeros ones full arange eye linspace logspace rand randn randint randperm tensor".split())
FACTORIES |= {"scalar_tensor", "as_tensor", "empty_strided", "tril_indices", "triu_indices"}
OF_A_TENSOR = {"new_empty", "new_zeros", "new_ones", "new_full", "new_tensor"}  # on the tensor's own device

DEFAULTS = ["float64", "bfloat16", "float16", "meta"]


@contextmanager
def default(name: str) -> Iterator[None]:
    """PyTorch's default dtype of this name, or its default device."""
    if name == "meta":
        with torch.device("meta"):
            yield
        return
    usual = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def under(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        with default(name):
            return kernel(*arguments)

    return run


def example(device: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    rows = {"student": (2, 3, 5), "teacher": (2, 3, 5), "bank": (2, 12, 5)}
    x = {name: torch.randn(shape, generator=generator, dtype=torch.float32) for name, shape in rows.items()}
    for name, high, shape in (("query_labels", 3, (2, 3)), ("bank_labels", 3, (2, 12)), ("index", 12, (2, 3, 4))):
        x[name] = torch.randint(high, shape, generator=generator)
    x["relation"] = torch.rand(3, 3, generator=generator, dtype=torch.float32)
    return {name: value.to(device) for name, value in x.items()}


def results(x: dict[str, Tensor]) -> list[Tensor]:
    """Values and gradients of every public function, on rows and on none."""
    student, teacher, bank = (x[name].detach().clone().requires_grad_() for name in ("student", "teacher", "bank"))
    labels = {name: x[name] for name in ("query_labels", "bank_labels")}
    outputs = [
        *action_kernels.action_contrast(student, teacher.detach(), bank, 4, **labels),
        *action_kernels.action_contrast(student, teacher.detach(), bank[:, :0], 4),
        action_kernels.contrastive_distillation(student, teacher.detach(), bank, reduction="none", normalize=False),
        *action_kernels.hard_negatives(student, bank, 3),
        *action_kernels.hard_negatives(student, bank[:, :0], 3),
        action_kernels.relation_negatives(*labels.values(), x["relation"], 5, seed=3),
        action_kernels.relation_negatives(x["query_labels"], x["bank_labels"][:, :0], x["relation"], 5, seed=3),
        action_kernels.anatomical_contrast(student, teacher, bank, x["index"]),
        action_kernels.anatomical_contrast(student, teacher, bank, x["index"][..., :0]),
    ]
    sum(y[y.isfinite()].sum() for y in outputs if y.is_floating_point()).backward()
    store = action_kernels.MemoryBank(7, 5, groups=2, labeled=True, device=bank.device)
    store.push(x["bank"], x["bank_labels"])
    stored = [store.rows, store.labels]
    return [y.detach() for y in outputs] + [student.grad, teacher.grad, bank.grad] + stored


@pytest.mark.parametrize("name", ["float64", "bfloat16", "meta"])
def test_results_do_not_depend_on_defaults(backend: str, device: str, name: str) -> None:
    x = example(device)
    expected = results(x)
    with default(name):
        got = results(x)
    for a, b in zip(got, expected, strict=True):
        assert (a.dtype, a.device) == (b.dtype, b.device)
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["float64", "meta"])
def test_opcheck(backend: str, device: str, name: str) -> None:
    """What the fake kernels promise is what the kernels give, whatever the defaults."""
    x = example(device)
    labels = x["query_labels"], x["bank_labels"]
    ops, utils = torch.ops.action_kernels, ("test_schema", "test_faketensor")
    student = x["student"].requires_grad_()
    with default(name):
        for op, arguments in (
            ("action_contrast", (student, x["teacher"], x["bank"], 3, 0.1, 0.05, *labels, True, True, True)),
            ("hard_negatives", (student, x["bank"], 3, *labels, True)),
            ("anatomical_contrast", (student, x["teacher"], x["bank"], x["index"], 0.5, True)),
        ):
            torch.library.opcheck(getattr(ops, op).default, arguments, test_utils=utils)


@pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))
@pytest.mark.parametrize("name", DEFAULTS)
def test_random_problems(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The random problems once more, the kernels alone under another default: the checks' own tensors rely on it."""
    for operator in OPERATORS:
        file = operator_file("cpu", operator)
        for kernel in [kernel for kernel in vars(file) if kernel.startswith(operator)]:
            monkeypatch.setattr(file, kernel, under(name, getattr(file, kernel)))
    test_cpu_fuzz.test_random_problems(DEFAULTS.index(name))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_allocation_names_its_dtype_and_device(path: Path) -> None:
    unnamed = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = node.func.value, node.func.attr
        wanted = set()
        if isinstance(owner, ast.Name) and owner.id == "torch" and name in FACTORIES:
            wanted = {"dtype", "device"}
        elif name in OF_A_TENSOR:
            wanted = {"dtype"}
        if wanted - {keyword.arg for keyword in node.keywords}:
            unnamed.append(f"line {node.lineno}: {ast.unparse(node)}")
    assert not unnamed, "\n".join(unnamed)
