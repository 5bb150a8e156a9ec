"""log_sum_exp and info_nce against float64, over shapes, dtypes, temperatures and edge values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import formulas
import pytest
import torch
from formulas import DTYPES, SHAPES, assert_as_good_as_plain, differentiate, neighbours
from torch import Tensor

from action_kernels import MemoryBank, info_nce, log_sum_exp


def compare(
    function: Callable[..., Tensor],
    formula: Callable[..., Tensor],
    rows: Sequence[Tensor],
    device: str,
    rival: torch.dtype | None = None,
    similarity: float = 1.0,
    **settings: float | bool,
) -> list[Tensor]:
    """Value and gradients in all ``rows`` of ours, held against plain PyTorch in their dtype or ``rival``."""
    upstream = torch.randn(rows[0].shape[:-1])
    results = [
        differentiate(lambda *x, f=f: f(*x, **settings), moved, upstream.to(moved[0].device))
        for f, moved in (
            (function, [x.to(device) for x in rows]),
            (formula, [x.to(rival) if rival else x for x in rows]),
            (formula, [x.double() for x in rows]),
        )
    ]
    assert_as_good_as_plain(*results, settings.get("temp", 0.1), similarity)
    return results[0]


def log_sum_exp_formula(query: Tensor, bank: Tensor, temp: float = 0.1, normalize: bool = True) -> Tensor:
    return (formulas.similarities(query, bank, normalize) / temp).logsumexp(-1)


def info_nce_formula(
    query: Tensor, positive: Tensor, bank: Tensor, temp: float = 0.1, normalize: bool = True
) -> Tensor:
    logit = (formulas.unit(query, normalize) * formulas.unit(positive, normalize)).sum(-1, keepdim=True) / temp
    logits = torch.cat([logit, formulas.similarities(query, bank, normalize) / temp], dim=-1)
    return -torch.log_softmax(logits, dim=-1)[..., 0]


def loss(*rows: Tensor, **settings: float | bool) -> Tensor:
    return info_nce(*rows, reduction="none", **settings)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64(backend: str, device: str, shape: tuple, dtype: torch.dtype) -> None:
    query, _, bank = (x.to(dtype) for x in neighbours(*shape))
    value, *gradients = compare(log_sum_exp, log_sum_exp_formula, (query, bank), device)
    assert value.dtype == torch.float64
    assert all(x.dtype == dtype for x in gradients)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temp", [0.01, 0.07, 1.0])
@pytest.mark.parametrize("normalize", [True, False])
def test_temperatures(backend: str, device: str, temp: float, normalize: bool, dtype: torch.dtype) -> None:
    query, _, bank = ((x if normalize else x / x.shape[-1] ** 0.5).to(dtype) for x in neighbours(67, 259, 33))
    largest = 1.0 if normalize else formulas.similarities(query.double(), bank.double(), False).abs().max().item()
    settings = {"temp": temp, "normalize": normalize}
    compare(log_sum_exp, log_sum_exp_formula, (query, bank), device, similarity=largest, **settings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(backend: str, device: str, dtype: torch.dtype) -> None:
    query, _, bank = (x.to(dtype) for x in neighbours(67, 259, 33))
    compare(log_sum_exp, log_sum_exp_formula, (query, bank), device, rival=torch.float32)


@pytest.mark.parametrize("k", [1, 3])
def test_the_value_is_not_rounded_to_float32(backend: str, device: str, k: int) -> None:
    """Integer rows and a temperature that is a power of two: k equal logits of 1e5 and none that counts beside them."""
    bank = torch.cat([torch.full((k, 8), 8.0), torch.zeros(70, 8)]).to(device)
    value = log_sum_exp(torch.full((2, 8), 8.0, device=device), bank, temp=2.0**-8, normalize=False)
    exact = 8 * 64 * 2.0**8 + torch.tensor(float(k)).log().double()
    assert (value.cpu() - exact).abs().max() < 1e-6


def test_one_query_and_a_long_bank(backend: str, device: str) -> None:
    """Where the bank is divided among threads or blocks, and the parts are merged."""
    query, _, bank = neighbours(3, 20_000, 16)
    compare(log_sum_exp, log_sum_exp_formula, (query, bank), device)


def test_an_exponential_sum_without_a_graph_is_the_same(backend: str, device: str) -> None:
    query, _, bank = (x.to(device) for x in neighbours(67, 259, 33))
    with torch.no_grad():
        plain = log_sum_exp(query, bank)
    torch.testing.assert_close(log_sum_exp(query.requires_grad_(), bank).detach(), plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_info_nce_with_separate_positives(backend: str, device: str, dtype: torch.dtype, groups: int | None) -> None:
    query, positive, bank = (x.to(dtype) for x in neighbours(40, 150, 24, groups))
    value, *gradients = compare(loss, info_nce_formula, (query, positive, bank), device)
    assert value.dtype == torch.float32
    assert all(x.dtype == dtype for x in gradients)


@pytest.mark.parametrize("temp", [0.01, 0.5])
def test_info_nce_with_positives_in_the_bank_is_cross_entropy(backend: str, device: str, temp: float) -> None:
    query, _, bank = neighbours(40, 150, 24)
    target = torch.randint(150, (40,))

    def ours(query: Tensor, bank: Tensor, temp: float) -> Tensor:
        return loss(query, bank[target.to(device)], bank, temp=temp, positive_in_bank=True)

    def formula(query: Tensor, bank: Tensor, temp: float) -> Tensor:
        logits = formulas.similarities(query, bank) / temp
        return torch.nn.functional.cross_entropy(logits, target, reduction="none")

    compare(ours, formula, (query, bank), device, temp=temp)


def test_a_small_loss_keeps_its_digits(backend: str, device: str) -> None:
    """A query that is its positive, against rows that are far from it: the loss is e^-30 or so."""
    query = torch.nn.functional.one_hot(torch.arange(5), 40).float()
    bank = torch.eye(40)[5:] - 0.5 * torch.eye(40)[:5].sum(0)
    value = loss(query.to(device), query.to(device), bank.to(device), temp=0.05).cpu()
    exact = info_nce_formula(*(x.double() for x in (query, query, bank)), temp=0.05)
    assert exact.max() < 1e-6
    torch.testing.assert_close(value, exact.float(), rtol=1e-4, atol=0.0)


def test_a_learnt_temperature(backend: str, device: str) -> None:
    query, positive, bank = neighbours(20, 60, 12)
    grads = []
    for rows, dtype in (
        ((query, positive, bank), torch.float32),
        ([x.double() for x in (query, positive, bank)], None),
    ):
        temp = torch.tensor([0.2], dtype=dtype or torch.float64, requires_grad=True)
        if dtype:
            info_nce(*(x.to(device) for x in rows), temp=temp).backward()
        else:
            info_nce_formula(*rows, temp=temp).mean().backward()
        grads.append(temp.grad)
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=1e-5, atol=1e-6)


def test_empty_inputs_keep_a_graph(backend: str, device: str) -> None:
    query = torch.randn(4, 6, device=device, requires_grad=True)
    bank = MemoryBank(10, 6, device=device)
    value = log_sum_exp(query, bank.rows)
    assert value.dtype == torch.float64
    assert value.tolist() == [-torch.inf] * 4
    total = info_nce(query, torch.randn(4, 6, device=device), bank.rows, reduction="sum")
    total.backward()
    assert total.item() == 0.0
    assert query.grad.tolist() == torch.zeros(4, 6).tolist()
    assert log_sum_exp(query[:0], torch.randn(3, 6, device=device)).shape == (0,)
    assert info_nce(query[:0], query[:0], torch.randn(3, 6, device=device)).item() == 0.0


def test_nan_reaches_the_queries_that_meet_it(backend: str, device: str) -> None:
    query, bank = torch.randn(2, 5, 6), torch.randn(2, 9, 6)
    bank[1, 4, 2] = torch.nan
    query[0, 3, 1] = torch.nan
    value = log_sum_exp(query.to(device), bank.to(device)).cpu()
    assert value.isnan().nonzero().tolist() == [[0, 3], *([1, i] for i in range(5))]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temp": 0.0}, "temp must be positive"),
        ({"bank": torch.zeros(0, 6), "positive_in_bank": True}, "bank of shape .* is empty"),
        ({"bank": torch.zeros(3, 7)}, "features"),
        ({"positive": torch.zeros(5, 6)}, "positive must have the shape of query"),
        ({"reduction": "total"}, "reduction"),
        ({"normalize": "l2"}, "normalize"),
    ],
)
def test_what_does_not_fit_is_named(backend: str, settings: dict, message: str) -> None:
    call = {"query": torch.zeros(4, 6), "positive": torch.zeros(4, 6), "bank": torch.zeros(3, 6)} | settings
    with pytest.raises(ValueError, match=message):
        info_nce(**call)


def test_as_pytorch_sees_it(backend: str, device: str) -> None:
    query, bank = torch.randn(2, 5, 7, device=device), torch.randn(2, 11, 7, device=device)
    operator = torch.ops.action_kernels.log_sum_exp.default
    for leaves in ((query, bank), (query.requires_grad_(), bank), (query.detach(), bank.requires_grad_())):
        torch.library.opcheck(operator, (*leaves, 0.1, True, leaves[0].requires_grad))
    lse = operator(query.detach(), bank.detach(), 0.1, True, False)[0]
    gradient = torch.ops.action_kernels.log_sum_exp_bank_gradient.default
    upstream = torch.randn(2, 5, dtype=torch.float64, device=device)
    torch.library.opcheck(gradient, (upstream, query.detach(), bank.detach(), lse, 0.1, True, backend))


def test_compiled_and_transformed(backend: str, device: str) -> None:
    query, positive, bank = (x.to(device) for x in neighbours(20, 60, 12))
    plain = torch.autograd.grad(info_nce(query.requires_grad_(), positive, bank), query)[0]
    compiled = torch.compile(info_nce, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(query, positive, bank), query)[0], plain)
    query = query.detach()
    torch.testing.assert_close(torch.func.grad(info_nce)(query, positive, bank), plain)
    mapped = torch.func.vmap(log_sum_exp)(torch.stack([query, positive]), torch.stack([bank, bank]))
    torch.testing.assert_close(mapped[1], log_sum_exp(positive, bank), rtol=1e-6, atol=1e-6)
