"""CUDA graphs of the losses: captured and replayed on a GPU; without one, that nothing reads a value on the way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from losses import FUNCTIONS, gradients, losses
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import action_kernels
from action_kernels import MemoryBank, relation_negatives, use_backend
from action_kernels.operators import registration


@pytest.fixture(params=["reference", "triton", "cuda"])
def on_a_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each backend that runs there, in force."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    state = action_kernels.list_backends()[request.param]
    if state != "ready":
        pytest.skip(f"backend {request.param}: {state}")
    with use_backend(request.param):
        yield


@pytest.mark.gpu
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_graph_holds_forward_and_backward(on_a_gpu: None, name: str) -> None:
    """A capture fails at any synchronisation and at work on another stream; replayed, it takes new values."""
    function, rows = losses("cuda", n=130, m=600, d=40)[name]
    leaves = [x.clone().requires_grad_() for x in rows]

    def step() -> list[Tensor]:
        loss = function(*leaves)
        return [loss, *torch.autograd.grad(loss, leaves)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaves[0].copy_(torch.randn_like(leaves[0]))
    graph.replay()
    for x, y in zip(captured, step(), strict=True):
        assert torch.equal(x, y)


@pytest.fixture
def no_values() -> Iterator[None]:
    """Tensors without data: whoever wants a value of them on the host, to wait for a GPU there, gets an error."""
    with FakeTensorMode():
        with pytest.raises(DataDependentOutputException):
            torch.ones(1).item()
        yield


@pytest.mark.parametrize("direct", [False, True], ids=["operators", "reference"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_loss_reads_a_value(name: str, direct: bool, monkeypatch: pytest.MonkeyPatch, no_values: None) -> None:
    """What surrounds the kernels does not, nor do the reference's kernels; Triton's and CUDA's have tests of theirs."""
    if direct:
        monkeypatch.setattr(registration, "_unseen", lambda *_: True)
    with use_backend("reference"):
        function, rows = losses("cpu")[name]
        value, *grads = gradients(function, rows)
    assert value.shape == () and [x.shape for x in grads] == [x.shape for x in rows]


def test_neither_draws_nor_a_bank_read_a_value(no_values: None) -> None:
    labels, bank = torch.randint(3, (5,)), MemoryBank(8, 3, labeled=True)
    for count in (5, 2, 9):
        bank.push(torch.randn(count, 3), torch.randint(3, (count,)))
    assert bank.labels is not None and bank.rows.shape == (8, 3)
    assert relation_negatives(labels, bank.labels, torch.rand(3, 3), 4, seed=0).shape == (5, 4)
