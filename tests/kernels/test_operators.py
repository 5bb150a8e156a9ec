"""The operators inside PyTorch: registration, gradcheck, torch.compile, autocast, second derivatives, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.util import find_spec
from inspect import signature
from typing import ClassVar

import pytest
import torch
from formulas import neighbours
from kernel_functions import OPERATORS, WHOLE, operator_file
from losses import FUNCTIONS, example, gradients, losses
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import action_kernels
from action_kernels import (
    action_contrast,
    anatomical_contrast,
    contrastive_distillation,
    hard_negatives,
    info_nce,
    log_sum_exp,
    relation_negatives,
)
from action_kernels.backends import kernel, select

OPS = torch.ops.action_kernels


# ---------------------------------------------------------------------------------------------------- registration


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck_forward(backend: str, device: str, op: str, gradients: bool) -> None:
    x = example(device)
    if op == "relation_negatives" and gradients:
        pytest.skip("draws have no gradient")
    rows = {name: x[name].requires_grad_(gradients and name != "teacher") for name in ("student", "teacher", "bank")}
    thresholds = torch.tensor([0, 5, 9]).expand(2, 3, 3).contiguous().to(device)
    class_start = torch.tensor([0, 0, 4, 11]).expand(2, 4).contiguous().to(device)
    order = torch.arange(11, device=device).expand(2, 11)
    labels = (x["query_labels"], x["bank_labels"])
    arguments = {
        "action_contrast": [
            (*rows.values(), 3, 0.1, 0.05, *labels, True, gradients, gradients),
            # What a gradient lacks is computed then.
            (*rows.values(), 0, 0.1, 0.05, None, None, False, gradients, False),
        ],
        "hard_negatives": [
            (rows["student"], rows["bank"], 13, *labels, True),
            (rows["student"], rows["bank"], 3, None, None, False),
        ],
        "anatomical_contrast": [
            (rows["student"], rows["bank"][:, :5].detach(), rows["bank"], x["index"], 0.5, n) for n in (True, False)
        ],
        "log_sum_exp": [(rows["student"], rows["bank"], 0.1, n, gradients) for n in (True, False)],
        "relation_negatives": [(x["query_labels"], thresholds, class_start, order, 6, 12345)],
    }
    for args in arguments[op]:
        torch.library.opcheck(getattr(OPS, op).default, args)


@pytest.mark.parametrize(
    "op",
    [
        "action_contrast_student_gradient",
        "action_contrast_bank_gradient",
        "hard_negatives_gradient",
        "anatomical_contrast_gradient",
        "log_sum_exp_bank_gradient",
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_backward(backend: str, device: str, op: str, dtype: torch.dtype) -> None:
    x = example(device, dtype)
    student, teacher, bank = x["student"], x["teacher"], x["bank"]
    with action_kernels.use_backend("reference"):  # the backend may lack one of the two
        _, statistics, *_ = OPS.action_contrast(student, teacher, bank, 0, 0.1, 0.05, None, None, True, False, True)
        _, lse = OPS.anatomical_contrast(student, teacher, bank, x["index"], 0.5, True)
    upstream = torch.randn(2, 5, device=device)
    arguments = {
        "action_contrast_student_gradient": [
            (student, teacher, bank, statistics[:2], 0.1, 0.05, True, backend),
        ],
        "action_contrast_bank_gradient": [
            (upstream, student, teacher, bank, statistics, 0.1, 0.05, True, backend),
        ],
        "hard_negatives_gradient": [
            (torch.randn(2, 5, 4, device=device), student, bank, x["index"], True, *wanted, backend)
            for wanted in ((True, True), (True, False), (False, True))
        ],
        "anatomical_contrast_gradient": [
            (upstream, student, teacher, bank, x["index"], lse, 0.5, True, *wanted, backend)
            for wanted in ((True, True, True), (True, False, False), (False, True, False), (False, False, True))
        ],
        "log_sum_exp_bank_gradient": [(upstream.double(), student, bank, statistics[0], 0.1, True, backend)],
    }
    for args in arguments[op]:
        torch.library.opcheck(getattr(OPS, op).default, args)


def kernels(operator: str) -> dict[str, Callable]:
    """The functions of an operator's file in the reference."""
    file = vars(operator_file("reference", operator))
    return {name: function for name, function in file.items() if name.startswith(operator)}


def test_every_kernel_is_an_operator() -> None:
    names = [name for operator in OPERATORS for name in kernels(operator)]
    assert names == [name for name in names if hasattr(OPS, name)]
    assert len(names) == 10


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_backends_file_has_the_references_functions(backend: str, operator: str) -> None:
    """With the same parameters."""
    if backend not in WHOLE and not find_spec(f"action_kernels.backends.{backend}.{operator}"):
        pytest.skip(f"{backend} has no {operator}")
    file = operator_file(backend, operator)
    for name, specification in kernels(operator).items():
        assert hasattr(file, name), name
        assert signature(getattr(file, name)) == signature(specification), name


# ------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradcheck(groups: int, normalize: bool) -> None:
    """float64, which the reference alone takes: gradients in every input, through both distributions of the bank."""
    x = example("cpu", torch.float64, groups)
    student, bank = (x[name].requires_grad_() for name in ("student", "bank"))
    positive = torch.randn_like(student).requires_grad_()
    labels = {"query_labels": x["query_labels"] % 2, "bank_labels": torch.arange(11).expand(groups, 11) % 3}
    assert torch.autograd.gradcheck(
        lambda s, b: action_contrast(
            s,
            x["teacher"],
            b,
            3,
            student_temp=0.4,
            teacher_temp=0.3,
            reduction="none",
            normalize=normalize,
            **labels,
        )[:2],
        (student, bank),
    )
    assert torch.autograd.gradcheck(
        lambda q, b: hard_negatives(q, b, 3, normalize=normalize, **labels)[0], (student, bank)
    )
    assert torch.autograd.gradcheck(
        lambda q, p, b: anatomical_contrast(q, p, b, x["index"], reduction="none", normalize=normalize),
        (student, positive, bank),
    )
    assert torch.autograd.gradcheck(lambda q, b: log_sum_exp(q, b, normalize=normalize), (student, bank))
    for positive_in_bank in (False, True):
        assert torch.autograd.gradcheck(
            lambda q, p, b, there=positive_in_bank: info_nce(
                q, p, b, positive_in_bank=there, reduction="none", normalize=normalize
            ),
            (student, positive, bank),
        )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_double_backward_is_refused(backend: str, device: str, name: str) -> None:
    function, rows = losses(device)[name]
    leaves = [x.requires_grad_() for x in rows]
    first = torch.autograd.grad(function(*leaves), leaves, create_graph=True)
    for expected, got in zip(gradients(function, rows)[1:], first, strict=True):
        assert torch.equal(expected, got)
    with pytest.raises(RuntimeError, match="second derivative"):
        sum(x.square().sum() for x in first).backward()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_some_inputs_alone(backend: str, device: str, name: str) -> None:
    """What is not asked for is not computed, and changes nothing in what is."""
    function, rows = losses(device)[name]
    _, *everything = gradients(function, rows)
    for i, expected in enumerate(everything):
        leaves = [x.detach().clone().requires_grad_(i == j) for j, x in enumerate(rows)]
        function(*leaves).backward()
        torch.testing.assert_close(leaves[i].grad, expected, rtol=1e-6, atol=1e-7)
        assert all(x.grad is None for j, x in enumerate(leaves) if j != i)


class _Recorder(TorchDispatchMode):
    """Arguments of the project's operators as they run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "action_kernels":
            self.calls.append((func.__name__.partition(".")[0], args))
        return func(*args, **(kwargs or {}))


def test_what_gradients_need_is_computed_only_where_they_are_wanted(backend: str, device: str) -> None:
    x = example(device)
    leaf, bank = (x[name].clone().requires_grad_() for name in ("student", "bank"))
    with _Recorder() as recorder:
        contrastive_distillation(leaf, x["teacher"], x["bank"]).backward()
        with torch.no_grad():
            contrastive_distillation(leaf, x["teacher"], bank)
        contrastive_distillation(x["student"], x["teacher"], x["bank"])
        contrastive_distillation(x["student"], x["teacher"], bank)
    assert [(name, args[-2:]) for name, args in recorder.calls] == [
        ("action_contrast", (True, False)),  # and its backward needs no operator at all
        ("action_contrast", (False, False)),
        ("action_contrast", (False, False)),
        ("action_contrast", (False, True)),
    ]


# ------------------------------------------------------------------------------------- straight to the kernel, or seen


@pytest.mark.parametrize("name", FUNCTIONS)
def test_both_ways_to_a_kernel_give_the_same(backend: str, device: str, name: str) -> None:
    function, rows = losses(device)[name]
    direct = gradients(function, rows)
    with _Recorder() as recorder:
        seen = gradients(function, rows)
    assert recorder.calls
    for one, other in zip(direct, seen, strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        assert torch.equal(function(*rows), direct[0])


class _Logged(Tensor):
    """A tensor whose owner is asked about every function that takes it."""

    asked: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.asked.append(str(func))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_who_looks_at_operators_sees_ours(device: str, name: str) -> None:
    function, rows = losses(device)[name]
    rows = tuple(x.detach() for x in rows)
    unwatched = function(*rows)
    with torch.profiler.profile() as recorded:
        assert torch.equal(function(*rows), unwatched)
    assert any("action_kernels" in event.name for event in recorded.events())
    _Logged.asked.clear()
    function(*(x.as_subclass(_Logged) for x in rows))
    assert any("action_kernels" in asked for asked in _Logged.asked)


# --------------------------------------------------------------------------------------------------------- compile


@pytest.fixture(autouse=True)
def _compiles_anew() -> None:
    """Else a graph of another backend's test would be taken again, and its backward pass belongs to that backend."""
    torch.compiler.reset()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiles_without_graph_breaks(backend: str, device: str, name: str) -> None:
    function, rows = losses(device)[name]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)
    for expected, got in zip(gradients(function, rows), gradients(compiled, rows), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*rows), function(*rows))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_backward_runs_on_the_backend_of_its_forward(
    backend: str, device: str, name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a thread that has chosen none, as PyTorch's own for the backward passes of a GPU."""
    function, rows = losses(device)[name]
    if compiled:
        function = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)
    leaves = [x.clone().requires_grad_() for x in rows]
    ran = []

    def spy(operator: str, name: str, *call: object) -> object:
        device_type, dtypes, _ = call
        ran.append((name, select(device_type, dtypes, operator).__name__.rpartition(".")[2]))
        return kernel(operator, name, *call)

    monkeypatch.setattr("action_kernels.operators.registration.kernel", spy)
    loss = function(*leaves)
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert all(x.grad is not None for x in leaves)
    assert any("gradient" in kernel for kernel, _ in ran)
    assert {used for _, used in ran} == {backend}


def test_compiles_for_dynamic_shapes(backend: str, device: str) -> None:
    def loss(student: Tensor, teacher: Tensor, bank: Tensor, labels: Tensor, k: int, seed: int) -> Tensor:
        classes = torch.arange(bank.shape[0], device=bank.device) % 3
        divergence, similarity, _ = action_contrast(student, teacher, bank, k, query_labels=labels, bank_labels=classes)
        index = relation_negatives(labels, classes, torch.ones(3, 3, device=bank.device), k, seed=seed)
        return divergence + similarity.sum() + anatomical_contrast(student, teacher, bank, index)

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)
    for step, (n, m) in enumerate([(5, 40), (9, 31), (17, 64)]):
        student, teacher, bank = (x.to(device) for x in neighbours(n, m, 8))
        labels = torch.randint(3, (n,), device=device)
        settings = (labels, 3 + step, 100 + step)
        one, two = (student.clone().requires_grad_() for _ in range(2))
        expected, got = loss(one, teacher, bank, *settings), compiled(two, teacher, bank, *settings)
        torch.testing.assert_close(got, expected)
        expected.backward()
        got.backward()
        torch.testing.assert_close(two.grad, one.grad)


# -------------------------------------------------------------------------------------------------------- autocast


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(backend: str, device: str, name: str, dtype: torch.dtype) -> None:
    function, rows = losses(device)[name]
    expected = gradients(function, rows)
    with torch.autocast(device, dtype):
        inside = gradients(function, rows)  # the backward pass too
    for a, b in zip(expected, inside, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a, b)


def test_half_rows_from_an_autocast_layer(backend: str, device: str) -> None:
    """bfloat16 features against a float32 bank: float32 loss, gradients in the parameters' own dtype."""
    layer = torch.nn.Linear(7, 7).to(device)
    x = example(device)
    with torch.autocast(device, torch.bfloat16):
        features = layer(x["student"])
        assert features.dtype == torch.bfloat16
        loss = contrastive_distillation(features, x["teacher"], x["bank"])
        loss.backward()
    assert loss.dtype == torch.float32
    assert layer.weight.grad.dtype == torch.float32 and layer.weight.grad.abs().max() > 0


# --------------------------------------------------------------------------------------------------------- threads


def test_two_threads_at_once(backend: str, device: str) -> None:
    """Every thread chooses its own backend, and the operators share no state."""
    function, rows = losses(device)["action_contrast"]
    expected = gradients(function, rows)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with action_kernels.use_backend(backend):
                for _ in range(20 if backend != "triton" else 3):  # whose interpreter takes seconds
                    for a, b in zip(expected, gradients(function, rows), strict=True):
                        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-7)
        except BaseException as failure:  # carried to the main thread
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
