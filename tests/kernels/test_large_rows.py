"""Rows and temperatures at the ends of float32: precision of gradients, and what must not overflow or spread."""

from __future__ import annotations

from collections.abc import Callable

import formulas
import pytest
import torch
from formulas import differentiate, errors, neighbours
from torch import Tensor

from action_kernels import (
    action_contrast,
    anatomical_contrast,
    contrastive_distillation,
    hard_negatives,
    use_backend,
)


@pytest.mark.parametrize("scale", [1e15, 1e18, 1e20, 1e30])
def test_normalised_rows_of_any_length(backend: str, device: str, scale: float) -> None:
    rows = [x * scale for x in neighbours(20, 150, 12)]
    student, teacher, bank = (x.to(device) for x in rows)
    wide = [x.double() for x in rows]
    ours = differentiate(
        lambda s: contrastive_distillation(s, teacher, bank, reduction="none"), (student,), torch.ones(20)
    )
    exact = differentiate(lambda s: formulas.distillation(s, wide[1], wide[2]), (wide[0],), torch.ones(20))
    assert max(errors(ours[0], exact[0])) < 1e-4
    if scale < 1e30:  # beyond, the gradient itself is hardly a float32
        assert max(errors(ours[1] * scale, exact[1] * scale)) < 1e-4


@pytest.mark.parametrize("scale", [1e18, 1e30, 1e36])
def test_normalised_rows_of_bfloat16_of_any_length(backend: str, device: str, scale: float) -> None:
    rows = [(x * scale).bfloat16() for x in neighbours(20, 150, 12)]
    ours = contrastive_distillation(*(x.to(device) for x in rows), reduction="none")
    assert max(errors(ours, formulas.distillation(*(x.double() for x in rows)))) < 1e-4


# ------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("temps", [(0.1, 0.01), (0.1, 0.1), (1.0, 0.1)], ids=str)
@pytest.mark.parametrize("distance", [1.0, 0.1, 1e-3])
def test_a_gradient_in_bfloat16_costs_hardly_more_than_rounding_it(
    backend: str, device: str, distance: float, temps: tuple[float, float]
) -> None:
    """However near the student is to the teacher, and their probabilities to each other."""
    rows, bank = torch.randn(32, 64), torch.randn(512, 64).bfloat16()
    student, teacher = (rows + distance * torch.randn(32, 64)).bfloat16(), rows.bfloat16()
    settings = {"student_temp": temps[0], "teacher_temp": temps[1], "reduction": "none"}
    gradients = []
    for name, dtype in ((backend, torch.bfloat16), ("reference", torch.float64)):
        own, other, banked = (x.to(device, dtype) for x in (student, teacher, bank))
        with use_backend(name):
            gradients += differentiate(
                lambda s, t=other, b=banked: contrastive_distillation(s, t, b, **settings), (own,), torch.ones(32)
            )[1:]
    found, exact = (x.double() for x in gradients)
    assert (found - exact).norm() < 1.05 * (exact.bfloat16() - exact).norm()


@pytest.mark.parametrize("temps", [(0.1, 0.01), (1.0, 1.0), (0.07, 0.5)], ids=str)
@pytest.mark.parametrize(("scale", "close"), [(1.0, False), (30.0, False), (1e4, False), (1.0, True), (10.0, True)])
def test_bank_gradient_of_rows_as_they_are(
    backend: str, device: str, scale: float, close: bool, temps: tuple[float, float]
) -> None:
    """Within ten times of plain PyTorch's error, whatever the size of the logits and however near the distributions."""
    student, bank = torch.randn(32, 64) * scale, torch.randn(256, 64)
    teacher = student * 1.01 if close else student + scale * torch.randn(32, 64)
    settings = {"student_temp": temps[0], "teacher_temp": temps[1], "normalize": False}
    results = []
    for function, moved in (
        (contrastive_distillation, [x.to(device) for x in (student, teacher, bank)]),
        (formulas.distillation, [student, teacher, bank]),
        (formulas.distillation, [x.double() for x in (student, teacher, bank)]),
    ):
        reduction = {"reduction": "none"} if function is contrastive_distillation else {}
        results.append(
            differentiate(
                lambda b, f=function, s=moved[0], t=moved[1], r=reduction: f(s, t, b, **settings, **r),
                (moved[2],),
                torch.ones(32),
            )
        )
    for ours, plain, exact in zip(*results, strict=True):
        for error, rival in zip(errors(ours, exact), errors(plain, exact), strict=True):
            assert error <= 10 * rival + 2e-6


# --------------------------------------------------------------------------------------------------------- lengths


def everything(rows: list[Tensor], index: Tensor, labels: dict[str, Tensor]) -> list[Tensor]:
    """Losses, similarities and gradients of all operators."""
    student, teacher, bank = (x.clone().requires_grad_() for x in rows)
    divergence, similarity, chosen = action_contrast(student, teacher.detach(), bank, 4, **labels)
    info_nce = anatomical_contrast(student, teacher, bank, index, reduction="none")
    values, _ = hard_negatives(student, bank, 3, **labels)
    total = divergence + similarity.sum() + info_nce.sum() + values.square().sum()
    gradients = torch.autograd.grad(total, (student, teacher, bank))
    return [x.detach().cpu() for x in (divergence, similarity, info_nce, values, *gradients, chosen)]


@pytest.mark.parametrize("scale", [1e20, 1e-13])
def test_every_operator_on_rows_of_any_length(backend: str, device: str, scale: float) -> None:
    """As the reference: huge rows at unit length, tiny ones with a norm that counts as 1e-12."""
    rows = [x * scale for x in neighbours(9, 40, 12)]
    index = torch.randint(-1, 40, (9, 5))
    labels = {"query_labels": torch.arange(9) % 3, "bank_labels": torch.arange(40) % 3}
    with use_backend("reference"):
        expected = everything(rows, index, labels)
    found = everything(
        [x.to(device) for x in rows], index.to(device), {name: x.to(device) for name, x in labels.items()}
    )
    assert all(x.isfinite().all() and x.any() for x in expected[:-1])
    for got, want in zip(found[:-1], expected[:-1], strict=True):
        largest = want.abs().max().double()
        torch.testing.assert_close(got.double() / largest, want.double() / largest, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[-1], expected[-1])


@pytest.mark.parametrize("scale", [1e14, 1e16, 1e18])
def test_similarities_near_the_end_of_float32(backend: str, device: str, scale: float) -> None:
    """Opposite rows as they are: every similarity is -1e28 or much less, and one of them is still the largest."""
    query, bank = (torch.rand(9, 12) + 0.5) * scale, (torch.rand(40, 12) + 0.5) * -scale
    similarity, index = hard_negatives(query.to(device), bank.to(device), 40, normalize=False)
    exact = query.double() @ bank.double().mT
    assert index.sort(-1).values.tolist() == [list(range(40))] * 9
    torch.testing.assert_close(similarity.double().cpu(), exact.sort(-1, descending=True).values, rtol=1e-5, atol=0.0)
    settings = {"student_temp": 0.5, "teacher_temp": 1.0, "normalize": False}
    ours = differentiate(
        lambda s, b: contrastive_distillation(s, query.flip(0).to(device), b, reduction="none", **settings),
        (query.to(device), bank.to(device)),
        torch.ones(9),
    )
    wide = query.double(), bank.double()
    exact = differentiate(lambda s, b: formulas.distillation(s, wide[0].flip(0), b, **settings), wide, torch.ones(9))
    for found, wanted in zip(ours, exact, strict=True):
        assert errors(found, wanted)[0] < 1e-5


# ------------------------------------------------------------------------------------------------------------- NaN


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "contrastive_distillation": lambda s, t, b: contrastive_distillation(s, t, b, reduction="none"),
    "action_contrast": lambda s, t, b: action_contrast(s, t, b, 3, reduction="none").distillation,
    "hard_negatives": lambda s, _, b: hard_negatives(s, b, 3)[0].nan_to_num(neginf=0.0).sum(-1),
    "anatomical_contrast": lambda s, t, b: anatomical_contrast(
        s, t, b, torch.arange(5, device=s.device).expand(s.shape[0], 5), reduction="none"
    ),
}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_nan_in_one_query_leaves_the_others_alone(backend: str, device: str, name: str, normalize: bool) -> None:
    """Losses of the other queries and their gradients are the same bits."""
    student, teacher, bank = (x.to(device) for x in neighbours(70, 200, 12))
    broken = student.clone()
    broken[37, 4] = torch.nan
    others = torch.arange(70, device=device) != 37
    clean, dirty = (
        differentiate(lambda s: LOSSES[name](s, teacher, bank), (x,), others.float()) for x in (student, broken)
    )
    for before, after in zip(clean, dirty, strict=True):
        assert torch.equal(before[others], after[others])


# ----------------------------------------------------------------------------------------------------- temperatures


@pytest.mark.parametrize("temp", [1e-9, 1e-20, 1e-36])
@pytest.mark.parametrize("m", [5, 130])
def test_the_smallest_temperatures_give_numbers(backend: str, device: str, temp: float, m: int) -> None:
    """All weight is on the teacher's best row: the loss is its distance from the student's best, in units of temp."""
    student, teacher, bank = (x.to(device) for x in neighbours(7, m, 8))
    leaves = student.clone().requires_grad_(), bank.clone().requires_grad_()
    loss = contrastive_distillation(leaves[0], teacher, leaves[1], student_temp=0.1, teacher_temp=temp)
    loss.backward()
    expected = formulas.distillation(student.double().cpu(), teacher.double().cpu(), bank.double().cpu(), 0.1, 1e-9)
    torch.testing.assert_close(loss.double().cpu(), expected.mean(), rtol=1e-5, atol=1e-6)
    assert all(x.grad.isfinite().all() and x.grad.any() for x in leaves)
