"""torch.func over the operators: gradients and maps as autograd has them, a sentence where there is no derivative.

And graphs traced with rows that need no gradient, differentiated later.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from formulas import neighbours
from torch import Tensor, func
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from action_kernels import (
    action_contrast,
    anatomical_contrast,
    contrastive_distillation,
    hard_negatives,
    relation_negatives,
)

Loss = Callable[[Tensor, Tensor], Tensor]
NAMES = ["contrastive_distillation", "action_contrast", "hard_negatives", "anatomical_contrast"]
FORWARD_MODE = "no forward-mode derivative .* use reverse mode"


def losses(device: str = "cpu") -> dict[str, tuple[Loss, Tensor, Tensor]]:
    """Functions of a query [5, 7] and a bank [11, 7], with these."""
    torch.manual_seed(0)
    query, teacher, bank = (x.to(device) for x in neighbours(5, 11, 7))
    index = torch.randint(-1, 11, (5, 4), device=device)
    labels = {"query_labels": torch.arange(5, device=device) % 3, "bank_labels": torch.arange(11, device=device) % 3}

    def both(q: Tensor, b: Tensor) -> Tensor:
        divergence, similarity, _ = action_contrast(q, teacher, b, 3, **labels)
        return divergence + similarity.square().sum()

    functions = {
        "contrastive_distillation": lambda q, b: contrastive_distillation(q, teacher, b),
        "action_contrast": both,
        "hard_negatives": lambda q, b: hard_negatives(q, b, 3, **labels)[0].square().sum(),
        "anatomical_contrast": lambda q, b: anatomical_contrast(q, teacher, b, index),
    }
    return {name: (function, query, bank) for name, function in functions.items()}


def gradients(loss: Loss, query: Tensor, bank: Tensor) -> tuple[Tensor, ...]:
    leaves = query.detach().clone().requires_grad_(), bank.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(*leaves), leaves)


@pytest.mark.parametrize("name", NAMES)
def test_reverse_mode(backend: str, device: str, name: str) -> None:
    loss, query, bank = losses(device)[name]
    expected = gradients(loss, query, bank)
    assert all(x.any() for x in expected)
    for got, want in zip(func.grad(loss, argnums=(0, 1))(query, bank), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_reverse_mode_of_every_kind(name: str) -> None:
    loss, query, bank = losses()[name]
    expected = gradients(loss, query, bank)
    value, vjp = func.vjp(loss, query, bank)
    torch.testing.assert_close(value, loss(query, bank))
    results = (vjp(torch.ones_like(value)), func.jacrev(loss, argnums=(0, 1))(query, bank))
    for got, want in ((got, want) for result in results for got, want in zip(result, expected, strict=True)):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(func.grad(loss)(query, bank), expected[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_maps(name: str) -> None:
    """Over queries beside one bank, over both, over another dimension; backward through a map; a map of gradients."""
    loss, query, bank = losses()[name]
    queries, banks = torch.stack([query, query.flip(0), -query]), torch.stack([bank, bank.roll(1, 0), bank / 2])
    expected = torch.stack([loss(q, bank) for q in queries])
    torch.testing.assert_close(func.vmap(loss, in_dims=(0, None))(queries, bank), expected)
    torch.testing.assert_close(func.vmap(loss, in_dims=(2, None))(queries.permute(1, 2, 0), bank), expected)
    expected = torch.stack([loss(q, b) for q, b in zip(queries, banks, strict=True)])
    torch.testing.assert_close(func.vmap(loss)(queries, banks), expected)

    each = [gradients(loss, q, bank) for q in queries]
    mapped = func.vmap(func.grad(loss, argnums=(0, 1)), in_dims=(0, None))(queries, bank)
    backward = gradients(lambda q, b: func.vmap(loss, in_dims=(0, None))(q, b).sum(), queries, bank)
    for i, per_query in enumerate(zip(*each, strict=True)):
        torch.testing.assert_close(mapped[i], torch.stack(per_query), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(backward[0], mapped[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(backward[1], mapped[1].sum(0), rtol=1e-5, atol=1e-6)


def test_jacobian_of_a_result_for_every_row() -> None:
    torch.manual_seed(0)
    query, teacher, bank = neighbours(5, 11, 7)
    jacobian = func.jacrev(lambda q: contrastive_distillation(q, teacher, bank, reduction="none"))(query)
    rows = torch.arange(5)
    expected = func.grad(lambda q: contrastive_distillation(q, teacher, bank, reduction="sum"))(query)
    torch.testing.assert_close(jacobian[rows, rows], expected)
    jacobian[rows, rows] = 0.0
    assert not jacobian.any()


def test_gradient_of_a_learnt_temperature() -> None:
    torch.manual_seed(0)
    query, teacher, bank = neighbours(5, 11, 7)
    log_temp = torch.tensor(-1.0, requires_grad=True)

    def loss(t: Tensor) -> Tensor:
        return contrastive_distillation(query, teacher, bank, student_temp=t.exp())

    (expected,) = torch.autograd.grad(loss(log_temp), log_temp)
    torch.testing.assert_close(func.grad(loss)(log_temp.detach()), expected)
    temps = torch.tensor([-2.0, -1.0, 0.0])
    torch.testing.assert_close(func.vmap(loss)(temps), torch.stack([loss(t) for t in temps]))
    with pytest.raises(RuntimeError, match=FORWARD_MODE):
        func.jvp(loss, (log_temp.detach(),), (torch.tensor(1.0),))


def test_draws_map() -> None:
    labels = torch.arange(12).view(3, 4) % 3
    bank, relation = torch.arange(9) % 3, torch.ones(3, 3)
    mapped = func.vmap(lambda q: relation_negatives(q, bank, relation, 5, seed=1))(labels)
    assert torch.equal(mapped, torch.stack([relation_negatives(q, bank, relation, 5, seed=1) for q in labels]))


# ------------------------------------------------------------------------------------------------------- no derivative


def dual(loss: Loss, query: Tensor, bank: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return loss(forward_ad.make_dual(query, query), bank)


FORWARD = {
    "jvp": lambda f, q, b: func.jvp(f, (q, b), (q, b)),
    "jvp in the bank": lambda f, q, b: func.jvp(lambda x: f(q, x), (b,), (b,)),
    "jacfwd": lambda f, q, b: func.jacfwd(f)(q, b),
    "linearize": lambda f, q, b: func.linearize(f, q, b),
    "dual": dual,
    "vmap of jvp": lambda f, q, b: func.vmap(lambda x: func.jvp(lambda y: f(y, b), (x,), (x,)))(q.unsqueeze(0)),
    "jvp of vmap": lambda f, q, b: func.jvp(lambda x: func.vmap(lambda y: f(y, b))(x), (q[None],), (q[None],)),
    "jvp of grad": lambda f, q, b: func.jvp(lambda x: func.grad(f)(x, b), (q,), (q,)),
    "hessian": lambda f, q, b: func.hessian(f)(q, b),
}


@pytest.mark.parametrize("mode", FORWARD)
@pytest.mark.parametrize("name", NAMES)
def test_forward_mode_is_refused(name: str, mode: str) -> None:
    loss, query, bank = losses()[name]
    with pytest.raises(RuntimeError, match=f"(contrast|hard_negatives) of .*{FORWARD_MODE}"):
        FORWARD[mode](loss, query, bank)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_refused(name: str) -> None:
    loss, query, bank = losses()[name]

    def slope(q: Tensor) -> Tensor:
        return func.grad(loss)(q, bank).square().sum()

    with pytest.raises(RuntimeError, match="no second derivative"):
        func.grad(slope)(query)
    with pytest.raises(RuntimeError, match="no second derivative"):
        func.grad(lambda q: func.vmap(slope)(q).sum())(query.unsqueeze(0))


def test_a_teacher_is_a_constant() -> None:
    torch.manual_seed(0)
    query, teacher, bank = neighbours(5, 11, 7)

    def loss(t: Tensor) -> Tensor:
        return contrastive_distillation(query, t, bank)

    with pytest.raises(ValueError, match=r"teacher must not require grad .* pass teacher.detach\(\)"):
        func.grad(loss)(teacher)
    with pytest.raises(RuntimeError, match=r"teacher has no gradient.* pass teacher.detach\(\)"):
        func.grad(lambda t: func.vmap(loss)(t).sum())(teacher.unsqueeze(0))


@pytest.mark.parametrize(
    "transformed",
    [
        lambda f, b: func.grad(lambda q: f(q, b)),
        lambda f, b: lambda q: func.jvp(lambda x: f(x, b), (q,), (q,)),
        lambda f, b: lambda q: func.vmap(lambda x: f(x, b))(q.unsqueeze(0)),
    ],
    ids=["grad", "jvp", "vmap"],
)
def test_transforms_inside_a_compiled_function_are_refused(transformed: Callable) -> None:
    torch.compiler.reset()
    loss, query, bank = losses()["contrastive_distillation"]
    compiled = torch.compile(transformed(loss, bank), backend="aot_eager", fullgraph=True)
    # PyTorch 2.6 cannot trace an exception that leaves a `with`, and refuses in its own words.
    words = "do not run under torch.func .* group dimension instead of vmap|WITH_EXCEPT_START"
    with pytest.raises(Exception, match=words):
        compiled(query)


# ------------------------------------------------------------------------------- traced without, differentiated later


class _Module(torch.nn.Module):
    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, query: Tensor, bank: Tensor) -> Tensor:
        return self.loss(query, bank)


TRACERS = {
    "make_fx": lambda loss, query, bank: make_fx(loss)(query, bank),
    "export": lambda loss, query, bank: torch.export.export(_Module(loss), (query, bank)).module(),
}


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("name", NAMES)
def test_traced_with_rows_that_need_no_gradient(name: str, tracer: str) -> None:
    loss, query, bank = losses()[name]
    traced = TRACERS[tracer](loss, query, bank)
    torch.testing.assert_close(traced(query, bank), loss(query, bank))
    for got, want in zip(gradients(traced, query, bank), gradients(loss, query, bank), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    leaf = query.clone().requires_grad_()
    traced(leaf, bank).backward()  # the student alone
    torch.testing.assert_close(leaf.grad, gradients(loss, query, bank)[0], rtol=1e-6, atol=1e-7)
