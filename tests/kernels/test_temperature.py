"""Temperatures that are tensors: their gradient, the results beside it, what is refused; schedules in compiled code."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from formulas import assert_as_good_as_plain, differentiate, distillation, info_nce, neighbours
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.fx.experimental import symbolic_shapes

from action_kernels import (
    ActionContrast,
    AnatomicalContrast,
    ContrastiveDistillation,
    action_contrast,
    anatomical_contrast,
    contrastive_distillation,
)

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda x: x, "mean": torch.mean, "sum": torch.sum}

CASES = [("none", True), ("mean", True), ("sum", False)]


def grouped_info_nce(query: Tensor, positive: Tensor, bank: Tensor, index: Tensor, *settings: Any) -> Tensor:
    groups = zip(query, positive, bank, index, strict=True)
    return torch.stack([info_nce(*group, *settings) for group in groups])


def compare(
    ours: Callable[..., Tensor], formula: Callable[..., Tensor], inputs: tuple[Tensor, ...], temp: float, device: str
) -> None:
    """Value and gradients, the temperature's among them, against autograd in float64."""
    exact = differentiate(formula, [x.double() for x in inputs], shape := torch.ones_like(formula(*inputs)).double())
    plain = differentiate(formula, [x.float() for x in inputs], shape)
    placed = [x.to(device) for x in inputs]
    result = [x.cpu() for x in differentiate(ours, placed, shape.to(device))]
    for got, given in zip(result[1:], inputs, strict=True):
        assert got.dtype == given.dtype and got.shape == given.shape
    rounded = [p.to(r.dtype) for p, r in zip(plain, result, strict=True)]
    assert_as_good_as_plain(result, rounded, exact, temp, terms=inputs[0].shape[-2] * 11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("reduction", "normalize"), CASES)
def test_gradient_of_a_students_temperature(
    backend: str, device: str, reduction: str, dtype: torch.dtype, normalize: bool
) -> None:
    torch.manual_seed(1)
    student, teacher, bank = (x.to(dtype) for x in neighbours(13, 40, 7, groups=2))
    if not normalize:
        student, teacher, bank = (x / 4 for x in (student, teacher, bank))
    reduce = REDUCTIONS[reduction]
    compare(
        lambda s, b, t: contrastive_distillation(
            s, teacher.to(device), b, student_temp=t, teacher_temp=0.2, reduction=reduction, normalize=normalize
        ),
        lambda s, b, t: reduce(distillation(s, teacher.to(s.dtype), b, t, 0.2, normalize)),
        (student, bank, torch.tensor(0.15)),
        0.15,
        device,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("reduction", "normalize"), CASES)
def test_gradient_of_an_info_nce_temperature(
    backend: str, device: str, reduction: str, dtype: torch.dtype, normalize: bool
) -> None:
    torch.manual_seed(2)
    query, positive, bank = (x.to(dtype) for x in neighbours(13, 40, 7, groups=2))
    if not normalize:
        query, positive, bank = (x / 4 for x in (query, positive, bank))
    index = torch.randint(-1, 40, (2, 13, 6))
    reduce = REDUCTIONS[reduction]
    compare(
        lambda q, p, b, t: anatomical_contrast(
            q, p, b, index.to(device), temp=t, reduction=reduction, normalize=normalize
        ),
        lambda q, p, b, t: reduce(grouped_info_nce(q, p, b, index, t, normalize)),
        (query, positive, bank, torch.tensor([0.4])),
        0.4,
        device,
    )


def test_gradcheck() -> None:
    torch.manual_seed(3)
    student, teacher, bank = (x.double() for x in neighbours(4, 9, 5))
    student.requires_grad_()
    bank.requires_grad_()
    log_temp = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    index = torch.randint(-1, 9, (4, 3))

    def both(s: Tensor, b: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return action_contrast(s, teacher, b, 3, student_temp=t.exp(), teacher_temp=torch.tensor(0.3))[:2]

    assert torch.autograd.gradcheck(both, (student, bank, log_temp))
    assert torch.autograd.gradcheck(
        lambda q, b, t: anatomical_contrast(q, teacher, b, index, temp=t.exp()), (student, bank, log_temp)
    )


def test_a_tensor_gives_what_its_number_gives(backend: str, device: str) -> None:
    torch.manual_seed(4)
    student, teacher, bank = (x.to(device) for x in neighbours(9, 30, 6))
    labels = {
        "query_labels": torch.arange(9, device=device) % 3,
        "bank_labels": torch.arange(30, device=device) % 4 - 1,
    }
    expected = action_contrast(student, teacher, bank, 25, student_temp=0.2, teacher_temp=0.1, **labels)
    student_temp = torch.tensor([0.2], requires_grad=True)  # on the CPU, wherever the rows are
    for temps in (
        {"student_temp": student_temp, "teacher_temp": 0.1},
        {"student_temp": 0.2, "teacher_temp": torch.tensor(0.1, device=device)},
        {"student_temp": student_temp.double(), "teacher_temp": torch.tensor(0.1)},
    ):
        result = action_contrast(student, teacher, bank, 25, **temps, **labels)
        assert torch.equal(result.index, expected.index) and (result.index == -1).any()
        torch.testing.assert_close(result.similarity, expected.similarity, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result.distillation, expected.distillation, rtol=1e-5, atol=1e-6)
    # The similarities are not divided by the temperature, so it has no gradient through them.
    similarity = action_contrast(student, teacher, bank, 25, student_temp=student_temp, **labels).similarity
    similarity.clamp_min(-2).sum().backward()
    assert abs(student_temp.grad.item()) < 1e-3


def test_a_temperature_of_an_empty_bank_has_a_zero_gradient() -> None:
    rows, bank, index = torch.randn(3, 4), torch.randn(0, 4), torch.full((3, 2), -1)
    for loss in (
        lambda t: contrastive_distillation(rows, rows, bank, student_temp=t),
        lambda t: anatomical_contrast(rows, rows, bank, index, temp=t),
    ):
        temp = nn.Parameter(torch.tensor([0.1]))
        loss(temp).backward()
        assert temp.grad.item() == 0.0


@pytest.mark.parametrize("module", [ContrastiveDistillation(), ActionContrast(2), AnatomicalContrast()])
def test_a_parameter_of_a_module_is_learnt(module: nn.Module) -> None:
    name = "temp" if isinstance(module, AnatomicalContrast) else "student_temp"
    constant = repr(module)
    setattr(module, name, nn.Parameter(torch.tensor(0.3)))
    assert [found for found, _ in module.named_parameters()] == [name]
    assert f"{name}=learnt" in repr(module) and "learnt" not in constant
    rows, bank = torch.randn(5, 4), torch.randn(8, 4)
    rest = (torch.randint(8, (5, 3)),) if name == "temp" else ()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    before = getattr(module, name).item()
    result = module(rows, rows.roll(1, 0), bank, *rest)
    (result.distillation if isinstance(module, ActionContrast) else result).backward()
    optimizer.step()
    assert getattr(module, name).item() != before
    assert type(module)(
        **({"k": 2} if isinstance(module, ActionContrast) else {}), **{name: nn.Parameter(torch.ones(1))}
    ).state_dict()


# --------------------------------------------------------------------------------------------------------- refused


WRONG = [
    (torch.tensor([0.1, 0.2]), r"number or a floating tensor of one element, got .*shape \(2,\)"),
    (torch.zeros(0), r"got a tensor of shape \(0,\)"),
    (torch.tensor(1), "got a tensor of shape .* torch.int64"),
    (torch.tensor(0.1 + 0j), "got a tensor of shape .* torch.complex64"),
    (torch.tensor(True), "got a tensor of shape .* torch.bool"),
    (torch.tensor(0.1, device="meta"), "on the rows' device cpu or on the CPU, got a tensor on meta"),
    (torch.tensor(-0.1), "positive and finite, got -0.1"),
    (torch.tensor(math.nan), "positive and finite, got nan"),
    (torch.tensor(1e-42), "lie in .*what float32 can divide by"),
    ("0.1", "got '0.1'"),
    (None, "got None"),
    (True, "got True"),
    (0.1 + 0j, r"got \(0.1\+0j\)"),
    ([0.1], r"got \[0.1\]"),
]


@pytest.mark.parametrize(("value", "match"), WRONG, ids=[str(value) for value, _ in WRONG])
@pytest.mark.parametrize("name", ["student_temp", "teacher_temp", "temp"])
def test_wrong_kinds_are_named(name: str, value: Any, match: str) -> None:
    rows = torch.randn(3, 4)
    with pytest.raises(ValueError, match=f"{name} must .*{match}"):
        if name == "temp":
            anatomical_contrast(rows, rows, rows, torch.zeros(3, 1).long(), temp=value)
        else:
            contrastive_distillation(rows, rows, rows, **{name: value})


def test_numbers_of_other_libraries_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    rows, bank = torch.randn(3, 4), torch.randn(5, 4)
    expected = contrastive_distillation(rows, rows.flip(0), bank, student_temp=0.5)
    for half in (numpy.float32(0.5), numpy.float64(0.5), numpy.float16(0.5)):
        assert torch.equal(contrastive_distillation(rows, rows.flip(0), bank, student_temp=half), expected)


def test_a_teachers_temperature_is_a_constant() -> None:
    rows, temp = torch.randn(3, 4), nn.Parameter(torch.tensor(0.1))
    with pytest.raises(ValueError, match=r"teacher_temp must not require grad.*pass teacher_temp\.detach\(\)"):
        contrastive_distillation(rows, rows, rows, teacher_temp=temp)
    contrastive_distillation(rows, rows, rows, teacher_temp=temp.detach())


def test_a_value_that_is_not_read_gives_nan() -> None:
    """In a compiled function, as on a GPU, no tensor's value is looked at."""
    torch.compiler.reset()
    rows, bank = torch.randn(3, 4), torch.randn(5, 4)
    loss = torch.compile(
        lambda t: contrastive_distillation(rows, rows, bank, student_temp=t), backend="aot_eager", fullgraph=True
    )
    assert loss(torch.tensor(0.1)).isfinite()
    for value in (-0.1, 0.0, math.inf, math.nan):
        assert loss(torch.tensor(value)).isnan()


# -------------------------------------------------------------------------------------------------------- schedules


def schedules() -> dict[str, Callable[[Tensor, Any], Tensor]]:
    """Losses of a query and a temperature."""
    torch.manual_seed(5)
    _, teacher, bank = neighbours(9, 30, 6)
    index = torch.randint(30, (9, 4))
    distil, contrast = ContrastiveDistillation(), AnatomicalContrast()

    def of_a_module(q: Tensor, t: Any) -> Tensor:
        distil.student_temp = t
        contrast.temp = t
        return distil(q, teacher, bank) + contrast(q, teacher, bank, index)

    return {
        "student": lambda q, t: contrastive_distillation(q, teacher, bank, student_temp=t),
        "teacher": lambda q, t: contrastive_distillation(q, teacher, bank, teacher_temp=t),
        "both": lambda q, t: action_contrast(q, teacher, bank, 3, student_temp=t, teacher_temp=t / 2)[0],
        "similarity": lambda q, t: action_contrast(q, teacher, bank, 3, student_temp=t)[1].sum(),
        "info_nce": lambda q, t: anatomical_contrast(q, teacher, bank, index, temp=t),
        "modules": of_a_module,
    }


number = pytest.param(
    "number",
    marks=pytest.mark.skipif(
        not hasattr(symbolic_shapes, "has_static_value"), reason="before PyTorch 2.7 a number is compiled in"
    ),
)


@pytest.mark.parametrize("name", ["student", "teacher", "both", "similarity", "info_nce", "modules"])
@pytest.mark.parametrize("kind", [number, "tensor"])
def test_a_schedule_compiles_at_most_three_times(name: str, kind: str) -> None:
    torch.compiler.reset()
    counters.clear()
    loss = schedules()[name]
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    rows = torch.randn(9, 6)
    for step in range(10):
        temp = 0.1 + 0.01 * step if kind == "number" else torch.tensor(0.1 + 0.01 * step)
        ours, plain = rows.clone().requires_grad_(), rows.clone().requires_grad_()
        value, expected = compiled(ours, temp), loss(plain, temp)
        value.backward()
        expected.backward()
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-3, atol=1e-5)
    assert counters["stats"]["unique_graphs"] <= 3


def test_a_constant_in_a_compiled_function_is_the_kernels_own() -> None:
    torch.compiler.reset()
    rows, bank = torch.randn(9, 6), torch.randn(30, 6)
    loss = torch.compile(
        lambda q: contrastive_distillation(q, q.flip(0), bank, student_temp=0.3), backend="aot_eager", fullgraph=True
    )
    assert torch.equal(loss(rows), contrastive_distillation(rows, rows.flip(0), bank, student_temp=0.3))


def test_a_learnt_temperature_compiles() -> None:
    torch.compiler.reset()
    _, teacher, bank = neighbours(9, 30, 6)
    rows = torch.randn(9, 6)
    gradients = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, backend="aot_eager", fullgraph=True)):
        log_temp = nn.Parameter(torch.tensor(-1.5))
        wrap(lambda q, t: contrastive_distillation(q, teacher, bank, student_temp=t.exp()))(rows, log_temp).backward()
        gradients.append(log_temp.grad)
    torch.testing.assert_close(*gradients)
