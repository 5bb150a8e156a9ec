"""contrastive_distillation and action_contrast against float64, over shapes, dtypes, temperatures and edge values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import formulas
import pytest
import torch
from formulas import DTYPES, SHAPES, assert_as_good_as_plain, differentiate, neighbours
from torch import Tensor

from action_kernels import action_contrast, contrastive_distillation, hard_negatives


def ours(*rows: Tensor, **settings: float | bool) -> Tensor:
    student, teacher, bank = rows
    return contrastive_distillation(student, teacher, bank, reduction="none", **settings)


def compare(
    rows: Sequence[Tensor], device: str, rival: torch.dtype | None = None, **settings: float | bool
) -> list[Tensor]:
    """Value, student gradient and bank gradient of ours, held against plain PyTorch.

    All start from the same rounded ``rows`` (student, teacher, bank). Plain PyTorch runs in their dtype or ``rival``.
    """
    upstream = torch.randn(rows[0].shape[:-1])
    results = []
    for function, moved in (
        (ours, [x.to(device) for x in rows]),
        (formulas.distillation, [x.to(rival) if rival else x for x in rows]),
        (formulas.distillation, [x.double() for x in rows]),
    ):
        student, teacher, bank = moved
        results.append(
            differentiate(lambda s, b, f=function, t=teacher: f(s, t, b, **settings), (student, bank), upstream)
        )
    similarity = 1.0
    if not settings.get("normalize", True):
        similarity = max(formulas.similarities(x.double(), rows[2].double(), False).abs().max() for x in rows[:2])
    temp = min(settings.get("student_temp", 0.1), settings.get("teacher_temp", 0.01))
    assert_as_good_as_plain(*results, temp, similarity)
    return results[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64(backend: str, device: str, shape: tuple, dtype: torch.dtype) -> None:
    value, grad_student, grad_bank = compare([x.to(dtype) for x in neighbours(*shape)], device)
    assert value.dtype == torch.float32
    assert grad_student.dtype == grad_bank.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temps", [(0.1, 0.01), (0.01, 0.01), (1.0, 0.04), (0.07, 0.5)], ids=str)
@pytest.mark.parametrize("normalize", [True, False])
def test_temperatures(backend: str, device: str, temps: tuple, normalize: bool, dtype: torch.dtype) -> None:
    rows = [(x if normalize else x / x.shape[-1] ** 0.5).to(dtype) for x in neighbours(67, 259, 33)]
    compare(rows, device, student_temp=temps[0], teacher_temp=temps[1], normalize=normalize)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(backend: str, device: str, dtype: torch.dtype) -> None:
    """The rival is plain PyTorch in float32 on the same rounded rows."""
    compare([x.to(dtype) for x in neighbours(67, 259, 33)], device, rival=torch.float32)


@pytest.mark.parametrize("lost", [torch.nan, torch.inf])
def test_a_group_without_a_gradient_leaves_the_others_theirs(backend: str, device: str, lost: float) -> None:
    """Weights of float16 products are brought near 1 by the largest of all groups, which must be a number."""
    rows = [x.half() for x in neighbours(20, 150, 12, 2)]
    student, teacher, bank = (x[1].double() for x in rows)
    upstream = torch.randn(2, 20) * 1e6
    _, exact = differentiate(lambda b: formulas.distillation(student, teacher, b), [bank], upstream[1])
    upstream[0, 3] = lost
    rows, ops = [x.to(device) for x in rows], torch.ops.action_kernels
    kept = ops.action_contrast(*rows, 0, 0.1, 0.01, None, None, True, False, True)[1]
    grad_bank = ops.action_contrast_bank_gradient(upstream.to(device), *rows, kept, 0.1, 0.01, True, backend)
    assert max(formulas.errors(grad_bank[1], exact)) < 2e-5


def test_dtypes_may_differ(backend: str, device: str) -> None:
    student, teacher, bank = neighbours(19, 70, 24)
    result = compare([student, teacher.half(), bank.bfloat16()], device, rival=torch.float32)
    assert [x.dtype for x in result] == [torch.float32, torch.float32, torch.bfloat16]


def test_equal_distributions_have_no_divergence(backend: str, device: str) -> None:
    student, _, bank = (x.to(device) for x in neighbours(33, 130, 20))
    result = differentiate(
        lambda s, b: ours(s, s.detach(), b, student_temp=0.05, teacher_temp=0.05), (student, bank), torch.ones(33)
    )
    for x in result:
        assert x.abs().max() < 2e-6


def test_huge_logits_stay_finite_and_exact(backend: str, device: str) -> None:
    """Integer rows and temperatures that are powers of two: logits up to 1e4 without any rounding of their own."""
    student, teacher, bank = (torch.randint(-8, 9, shape).float() for shape in ((40, 10), (40, 10), (90, 10)))
    settings = {"student_temp": 2.0**-6, "teacher_temp": 2.0**-5, "normalize": False}
    logits = formulas.similarities(student, bank, False) / settings["student_temp"]
    assert logits.max() > 1e4 and logits.min() < -1e4
    for x in compare([student, teacher, bank], device, **settings):
        assert x.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_far_softmaxes_have_finite_gradients(backend: str, device: str, dtype: torch.dtype) -> None:
    """The teacher sees two rows alike, the student one of them: divergence and weights are in the thousands."""
    bank = torch.randn(40, 24)
    teacher = torch.nn.functional.normalize(bank[0:2]).sum(0).expand(5, 24) + 1e-3 * torch.randn(5, 24)
    student = bank[0] - bank[1] + 0.1 * torch.randn(5, 24)
    rows = [x.to(dtype).to(device) for x in (student, teacher, bank)]
    leaves = [rows[0].requires_grad_(), rows[1], rows[2].requires_grad_()]
    value = ours(*leaves, student_temp=1e-4, teacher_temp=0.1)
    assert value.min() > 1000
    for gradient in torch.autograd.grad(value.sum(), leaves[::2]):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_reductions_and_upstream_gradients(backend: str, device: str) -> None:
    student, teacher, bank = (x.to(device) for x in neighbours(5, 37, 24, groups=3))
    weight = torch.randn(3, 5, device=device)
    leaf = student.clone().requires_grad_()
    rows = contrastive_distillation(leaf, teacher, bank, reduction="none")
    assert rows.shape == (3, 5)
    torch.testing.assert_close(contrastive_distillation(leaf, teacher, bank), rows.mean())
    torch.testing.assert_close(contrastive_distillation(leaf, teacher, bank, reduction="sum"), rows.sum())
    (weighted,) = torch.autograd.grad((rows * weight).sum(), leaf, retain_graph=True)
    (again,) = torch.autograd.grad((rows * weight).sum(), leaf)
    assert torch.equal(weighted, again)
    (plain,) = torch.autograd.grad(contrastive_distillation(leaf, teacher, bank, reduction="sum"), leaf)
    (mean,) = torch.autograd.grad(contrastive_distillation(leaf, teacher, bank, reduction="mean"), leaf)
    torch.testing.assert_close(weighted, plain * weight.unsqueeze(-1), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(mean, plain / 15, rtol=1e-6, atol=1e-7)


def test_groups_are_independent(backend: str, device: str) -> None:
    student, teacher, bank = (x.to(device) for x in neighbours(9, 40, 16, groups=3))
    grouped = action_contrast(student, teacher, bank, 4, reduction="none")
    for g in range(3):
        alone = action_contrast(student[g], teacher[g], bank[g], 4, reduction="none")
        torch.testing.assert_close(grouped.distillation[g], alone.distillation)
        torch.testing.assert_close(grouped.similarity[g], alone.similarity)
        assert torch.equal(grouped.index[g], alone.index)


def strided(x: Tensor) -> Tensor:
    """The same values, every second element of a wider buffer, last dimension not the fastest."""
    wide = torch.full((*x.shape[:-2], x.shape[-1], 2 * x.shape[-2]), torch.nan, dtype=x.dtype, device=x.device)
    view = wide[..., ::2].mT
    view.copy_(x)
    assert not view.is_contiguous()
    return view


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [None, 2])
def test_non_contiguous_inputs(backend: str, device: str, groups: int | None, dtype: torch.dtype) -> None:
    student, teacher, bank = (x.to(device, dtype) for x in neighbours(21, 50, 19, groups))
    upstream = torch.randn(student.shape[:-1])
    query_labels = torch.randint(3, student.shape[:-1], device=device)
    bank_labels = torch.randint(-1, 3, bank.shape[:-1], device=device)

    def both(s: Tensor, t: Tensor, b: Tensor, stretch: Callable) -> Tensor:
        result = action_contrast(
            s, t, b, 3, query_labels=stretch(query_labels), bank_labels=stretch(bank_labels), reduction="none"
        )
        return result.distillation + result.similarity.sum(-1)

    def spread(labels: Tensor) -> Tensor:
        return labels.repeat_interleave(2, -1)[..., ::2]

    plain = differentiate(lambda s, b: both(s, teacher, b, lambda x: x), (student, bank), upstream)
    views = differentiate(
        lambda s, b: both(strided(s), strided(teacher), strided(b), spread), (student, bank), upstream
    )
    for a, b in zip(plain, views, strict=True):
        torch.testing.assert_close(a, b, rtol=2 * torch.finfo(a.dtype).eps, atol=2e-5)


def test_expanded_rows(backend: str, device: str) -> None:
    student, teacher, bank = (x.to(device) for x in neighbours(1, 50, 19))
    many = contrastive_distillation(student.expand(8, -1), teacher.expand(8, -1), bank, reduction="none")
    one = contrastive_distillation(student, teacher, bank, reduction="none")
    torch.testing.assert_close(many, one.expand(8), rtol=1e-6, atol=1e-6)


def test_nan_stays_in_its_row(backend: str, device: str) -> None:
    student, teacher, bank = (x.to(device) for x in neighbours(12, 60, 16))
    clean = differentiate(lambda s: ours(s, teacher, bank), (student,), torch.ones(12))
    student[3, 5] = torch.nan
    teacher[7, 0] = torch.nan
    dirty = differentiate(lambda s: ours(s, teacher, bank), (student,), torch.ones(12))
    bad = torch.zeros(12, dtype=torch.bool, device=device)
    bad[[3, 7]] = True
    for before, after in zip(clean, dirty, strict=True):
        assert after[bad].isnan().all()
        torch.testing.assert_close(after[~bad], before[~bad], rtol=1e-6, atol=1e-6)
    bank[9, 1] = torch.nan
    assert contrastive_distillation(student, teacher, bank, reduction="none").isnan().all()


def test_rows_shorter_than_the_smallest_norm(backend: str, device: str) -> None:
    """Zero rows and rows of norm below 1e-12 are divided by the constant 1e-12: no radial part is cut."""
    student, teacher, bank = neighbours(6, 20, 8)
    student[2], bank[4] = 0.0, 0.0
    student[3] *= 1e-14
    bank[5] *= 1e-14
    upstream = torch.randn(6)
    moved = [x.to(device) for x in (student, teacher, bank)]
    value, *gradients = differentiate(lambda s, b: ours(s, moved[1], b), (moved[0], moved[2]), upstream)
    wide = [x.double() for x in (student, teacher, bank)]
    exact = differentiate(lambda s, b: formulas.distillation(s, wide[1], b), (wide[0], wide[2]), upstream)
    torch.testing.assert_close(value.double().cpu(), exact[0], rtol=1e-4, atol=1e-5)
    for gradient, truth, short in zip(gradients, exact[1:], ((2, 3), (4, 5)), strict=True):
        assert truth[list(short)].norm(dim=-1).min() > 1e6  # 1e12 times an ordinary one
        for i in range(len(truth)):
            torch.testing.assert_close(
                gradient[i].double().cpu(), truth[i], rtol=1e-3, atol=1e-4 * max(1.0, truth[i].abs().max().item())
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeats_bit_for_bit(backend: str, device: str, dtype: torch.dtype) -> None:
    student, teacher, bank = (x.to(device, dtype) for x in neighbours(130, 300, 40))
    upstream = torch.randn(130)

    def run() -> list[Tensor]:
        def both(s: Tensor, b: Tensor) -> Tensor:
            result = action_contrast(s, teacher, b, 8, reduction="none")
            return result.distillation + result.similarity.mean(-1)

        return differentiate(both, (student, bank), upstream)

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("shape", [(67, 259, 33, None), (9, 6, 5, None), (5, 37, 24, 3)], ids=str)
def test_action_contrast_is_both_operators(backend: str, device: str, shape: tuple, labelled: bool) -> None:
    student, teacher, bank = (x.to(device) for x in neighbours(*shape))
    labels = {}
    if labelled:
        labels["query_labels"] = torch.randint(3, student.shape[:-1], device=device)
        labels["bank_labels"] = torch.randint(-1, 3, bank.shape[:-1], device=device)
    weight = torch.randn(*student.shape[:-1], 8, device=device)

    def gradients(use: str) -> list[Tensor]:
        s, b = student.clone().requires_grad_(), bank.clone().requires_grad_()
        if use == "joint":
            divergence, similarity, index = action_contrast(s, teacher, b, 8, **labels)
        else:
            divergence = contrastive_distillation(s, teacher, b)
            similarity, index = hard_negatives(s, b, 8, **labels)
        chosen = torch.where(index >= 0, similarity * weight, 0.0).sum()
        return [divergence, similarity, index.float(), *torch.autograd.grad(divergence + chosen, (s, b))]

    for joint, apart in zip(gradients("joint"), gradients("apart"), strict=True):
        torch.testing.assert_close(joint, apart, rtol=1e-5, atol=1e-5)
