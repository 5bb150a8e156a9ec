"""PyTorch's ways to keep less between forward and backward: checkpoints, and hooks that put tensors elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from allocations import Allocations
from losses import FUNCTIONS, example, gradients, losses
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from action_kernels import ContrastiveDistillation, MemoryBank, use_backend
from action_kernels.backends import kernel, select


def counted(function: Callable[..., Tensor], calls: list[bool]) -> Callable[..., Tensor]:
    """The function, which notes whether gradients are recorded each time that it runs."""

    def counting(*rows: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return function(*rows)

    return counting


@pytest.mark.parametrize("reentrant", [False, True], ids=["hooks", "reentrant"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_checkpoint_changes_no_bit(backend: str, device: str, name: str, reentrant: bool) -> None:
    function, rows = losses(device)[name]
    calls: list[bool] = []
    again = counted(function, calls)
    expected = gradients(function, rows)
    got = gradients(lambda *leaves: checkpoint(again, *leaves, use_reentrant=reentrant), rows)
    assert calls == [not reentrant, True]  # the backward pass runs it once more
    assert all(torch.equal(x, y) for x, y in zip(expected, got, strict=True))


@pytest.mark.parametrize("reentrant", [False, True], ids=["hooks", "reentrant"])
def test_a_checkpoint_around_an_encoder_and_a_learnt_temperature(backend: str, device: str, reentrant: bool) -> None:
    """What the checkpoint holds is a whole step: layers, dropout, the loss as a module, and its own parameter."""
    x = example(device)
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Dropout(0.2), nn.Linear(9, 7)).to(device)
        loss = ContrastiveDistillation(nn.Parameter(torch.tensor(0.2, device=device)))
        leaf = x["student"].clone().requires_grad_()

        def step(rows: Tensor, encoder: nn.Module = encoder, loss: nn.Module = loss) -> Tensor:
            return loss(encoder(rows), x["teacher"], x["bank"])

        value = checkpoint(step, leaf, use_reentrant=reentrant) if checkpointed else step(leaf)
        value.backward()
        results.append([value, leaf.grad, *(p.grad for p in (*encoder.parameters(), *loss.parameters()))])
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.parametrize("named", [False, True])
def test_a_recomputation_runs_on_the_backend_that_its_context_names(
    backend: str, device: str, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a forward pass of its own, here in a thread that has chosen none, as those of a GPU's backward passes."""
    function, rows = losses(device)["info_nce"]
    ran: list[str] = []

    def spy(operator: str, name: str, *call: object) -> object:
        device_type, dtypes, _ = call
        ran.append(select(device_type, dtypes, operator).__name__.rpartition(".")[2])
        return kernel(operator, name, *call)

    def contexts() -> tuple:
        return (use_backend(backend), use_backend(backend)) if named else (nullcontext(), nullcontext())

    with use_backend(None):
        usual = select(device, (torch.float32,), "log_sum_exp").__name__.rpartition(".")[2]
    monkeypatch.setattr("action_kernels.operators.registration.kernel", spy)
    leaves = [x.clone().requires_grad_() for x in rows]
    loss = checkpoint(function, *leaves, use_reentrant=False, context_fn=contexts)
    forward = len(ran)
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert all(x.grad is not None for x in leaves)
    assert set(ran[:forward]) == {backend}
    assert ran[forward] == (backend if named else usual)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tensors_kept_on_the_host_change_no_bit(backend: str, device: str, name: str) -> None:
    """They come back as other tensors, and dense whatever they were."""
    function, rows = losses(device)[name]
    strided = tuple(x.mT.contiguous().mT for x in rows)

    def offloaded(*leaves: Tensor) -> Tensor:
        with save_on_cpu():
            return function(*leaves)

    for x, y in zip(gradients(function, strided), gradients(offloaded, strided), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_hooks_are_given_everything_that_is_kept(device: str, name: str) -> None:
    """Between the passes no tensor is held but the loss: all have gone to where the hooks put them."""
    function, rows = losses(device)[name]
    expected = gradients(function, rows)
    leaves = [x.clone().requires_grad_() for x in rows]

    def pack(x: Tensor) -> np.ndarray:
        return x.detach().cpu().numpy().copy()

    def unpack(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(device)

    with Allocations() as allocations, saved_tensors_hooks(pack, unpack):
        function(*leaves)  # whose inputs are seen for the first time, and are held anyway
        before = allocations.held()
        value = function(*leaves)
    assert allocations.held() - before == value.untyped_storage().nbytes()
    value.backward()
    for x, y in zip(expected, (value, *(x.grad for x in leaves)), strict=True):
        assert torch.equal(x, y)


def test_a_push_between_the_passes_is_refused_where_tensors_are_kept(backend: str, device: str) -> None:
    """As without them: a bank's rows are overwritten in place."""
    x = example(device, groups=1)
    bank = MemoryBank(11, 7, device=device)
    bank.push(x["bank"][0])
    function, _ = losses(device)["info_nce"]
    leaf = x["student"][0].requires_grad_()
    loss = checkpoint(function, leaf, x["teacher"][0], bank.rows, use_reentrant=True)
    bank.push(x["bank"][0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
