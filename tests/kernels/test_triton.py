"""What only the Triton backend does: a missing Triton, the choice on CUDA, merged splits, selection under pressure."""

from __future__ import annotations

import subprocess
import sys

import formulas
import pytest
import torch
from formulas import neighbours

import action_kernels
from action_kernels import contrastive_distillation, hard_negatives, use_backend

pytestmark = [pytest.mark.skipif(action_kernels.list_backends()["triton"] != "ready", reason="no Triton")]
pytestmark += [pytest.mark.gpu] * torch.cuda.is_available()

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def report(prelude: str) -> str:
    """`python -m action_kernels` in a process without the interpreter, after ``prelude``."""
    code = f"import os, sys; os.environ.pop('TRITON_INTERPRET', None); {prelude}; "
    code += "from action_kernels.__main__ import report; print(report())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_without_triton_the_reason_is_reported() -> None:
    prelude = "import torch; torch.cuda.is_available = lambda: True; sys.modules['triton'] = None"
    state = next(x for x in report(prelude).splitlines() if x.startswith("backend triton"))
    assert "triton" in state.removeprefix("backend triton") and "ready" not in state


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_reason_is_reported() -> None:
    assert "PyTorch finds no CUDA device" in report("pass")


def test_chosen_for_cuda_alone() -> None:
    from action_kernels.backends import select, triton

    with use_backend(None):
        assert select("cuda", (torch.bfloat16,) * 3) is triton
        assert select("cpu", (torch.bfloat16,) * 3) is not triton


def test_float32_products_follow_pytorch() -> None:
    from action_kernels.backends.triton.launch import float32_precision

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert float32_precision() == "tf32"
        torch.set_float32_matmul_precision("highest")
        assert float32_precision() == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("order", ["rising", "falling", "all equal"])
@pytest.mark.parametrize("k", [1, 40])
def test_selection_whose_buffer_fills(order: str, k: int) -> None:
    """In rising order every row of the bank beats all before it; equal ones must all be turned away."""
    m = 1500
    position = {"rising": torch.arange(m), "falling": torch.arange(m).flip(0), "all equal": torch.zeros(m)}[order]
    bank = torch.stack([position.float() - 700, torch.ones(m)], dim=-1).to(DEVICE)
    query = torch.tensor([[1.0, 0.0], [2.0, 5.0], [-1.0, 0.0]], device=DEVICE)
    with use_backend("triton"):
        similarity, index = hard_negatives(query, bank, k, normalize=False)
    exact = (query.double() @ bank.double().T).cpu()
    expected = torch.tensor(formulas.selection(exact, k))
    assert torch.equal(index.cpu(), expected)
    assert torch.equal(similarity.cpu().double(), exact.gather(1, expected))


@pytest.mark.parametrize("m", [11, 30])  # a few more keys than are wanted, and many
def test_keys_are_put_into_order_in_parts(monkeypatch: pytest.MonkeyPatch, m: int) -> None:
    from action_kernels.backends.gpu import EMPTY
    from action_kernels.backends.triton import order

    keys = torch.randint(-(2**63), 2**63 - 1, (2, 7, m))
    keys[0, 3] = EMPTY
    whole = order.in_order(keys, 8)
    monkeypatch.setattr(order, "SORTED", 3 * m)
    monkeypatch.setattr(order, "SORTED_IN_REGISTERS", 0)
    parts = order.in_order(keys, 8)
    assert torch.equal(parts[1], whole[1]) and torch.equal(parts[0].nan_to_num(), whole[0].nan_to_num())
    assert (whole[1][0, 3] == -1).all() and (whole[0][0, 3] == -torch.inf).all()
    expected = keys.sort(dim=-1, descending=True).values[..., :8] & 0xFFFFFFFF
    assert torch.equal(whole[1][1], 0xFFFFFFFF - expected[1])


@pytest.mark.parametrize(("k", "at_once"), [(3, 8), (8, 8), (3, 4), (4, 2)])
def test_a_kernel_puts_keys_into_order(monkeypatch: pytest.MonkeyPatch, k: int, at_once: int) -> None:
    """All of a line at once, or as many at a time."""
    from action_kernels.backends.gpu import EMPTY
    from action_kernels.backends.triton import order

    keys = torch.randint(-(2**63), 2**63 - 1, (2, 3, 7), device=DEVICE)
    keys[0, 1, 2:] = EMPTY
    keys[1, 2] = EMPTY
    monkeypatch.setattr(order, "SORTED_IN_REGISTERS", 0)
    expected = order.in_order(keys, k)
    monkeypatch.setattr(order, "SORTED_IN_REGISTERS", 8)
    monkeypatch.setattr(order, "AT_ONCE", at_once)
    found = order.in_order(keys, k)
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0].view(torch.int32), expected[0].view(torch.int32))  # the keys' similarities may be NaN
    assert (found[1][1, 2] == -1).all()


def test_zeros_of_both_signs_are_a_tie() -> None:
    query = torch.tensor([[1.0, 0.0]], device=DEVICE)
    bank = torch.tensor([[-0.0, 1.0], [0.0, 1.0], [-0.0, -1.0], [-1.0, 0.0]], device=DEVICE)
    with use_backend("triton"):
        _, index = hard_negatives(query, bank, 4, normalize=False)
    assert index.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("size", [1e-4, 200.0])
def test_float16_rows_of_any_length(size: float) -> None:
    """Lengths and upstream gradients at which float16 products or weights would leave its range."""
    rows = [(x * size).half() for x in neighbours(20, 150, 12)]
    student, teacher, bank = rows
    upstream = torch.randn(20) * 1e6

    def ours(s: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        with use_backend("triton"):
            return contrastive_distillation(s, teacher.to(DEVICE), b, reduction="none")

    # Gradients as float32: those of such rows are beyond float16 themselves.
    leaves = [x.float().to(DEVICE).requires_grad_() for x in (student, bank)]
    half = formulas.differentiate(lambda s, b: ours(s.half(), b.half()), leaves, torch.ones(20))[0]
    exact = formulas.distillation(student.double(), teacher.double(), bank.double())
    torch.testing.assert_close(half.double().cpu(), exact, rtol=2e-5, atol=2e-5)

    backend_rows = [x.unsqueeze(0).to(DEVICE) for x in rows]
    ops = torch.ops.action_kernels
    with use_backend("triton"):
        _, kept, student_grad, _, _ = ops.action_contrast(*backend_rows, 0, 0.1, 0.01, None, None, True, True, True)
        grad_bank = ops.action_contrast_bank_gradient(
            upstream.unsqueeze(0).to(DEVICE), *backend_rows, kept, 0.1, 0.01, True, "triton"
        )
    truth = formulas.differentiate(
        lambda s, b: formulas.distillation(s, teacher.double(), b), (student.double(), bank.double()), upstream
    )
    grad_student = student_grad[0].double().cpu() * upstream.double().unsqueeze(-1)
    for result, expected in ((grad_student, truth[1]), (grad_bank[0].double().cpu(), truth[2])):
        assert max(formulas.errors(result, expected)) < 2e-5


def test_offsets_beyond_32_bits() -> None:
    """Bank rows 2**30 elements apart; the memory between them is never touched."""
    m, d = 5, 8
    memory = torch.empty(4 * 2**30 + d, dtype=torch.float16, device=DEVICE)
    bank = memory.as_strided((m, d), (2**30, 1))
    query, _, rows = (x.half().to(DEVICE) for x in neighbours(3, m, d))
    bank.copy_(rows)
    index = torch.tensor([[4, 0, 2], [1, 3, 4], [4, 4, -1]], device=DEVICE)
    with use_backend("triton"):
        for function in (
            lambda b: contrastive_distillation(query, query, b, teacher_temp=0.05, reduction="none"),
            lambda b: hard_negatives(query, b, 5)[0],
            lambda b: action_kernels.anatomical_contrast(query, query, b, index, reduction="none"),
        ):
            assert torch.equal(function(bank), function(rows))
