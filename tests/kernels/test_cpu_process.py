"""The native CPU backend inside a process: repeatability, memory layout, Python threads, fork, NaN."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from formulas import neighbours
from kernel_functions import Kernels
from torch import Tensor

from action_kernels.backends import cpu

CPU = Kernels("cpu")
pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))


def everything(dtype: torch.dtype = torch.float32, place: Callable[[Tensor], Tensor] = lambda x: x) -> list[Tensor]:
    """Results of all kernels on one seeded problem, big enough for several threads."""
    torch.manual_seed(3)
    student, teacher, bank = (place(x.unsqueeze(0).to(dtype)) for x in neighbours(150, 700, 20))
    labels = torch.randint(3, (1, 150)), torch.randint(3, (1, 700))
    contrast = CPU.action_contrast(student, teacher, bank, 30, 0.1, 0.05, *labels, True, True, True)
    upstream, weights = torch.randn(1, 150), torch.randn(1, 150, 30)
    index = contrast.index
    loss, lse = CPU.anatomical_contrast(student, teacher, bank, index, 0.5, True)
    return [
        *contrast,
        CPU.action_contrast_bank_gradient(upstream, student, teacher, bank, contrast.statistics, 0.1, 0.05, True),
        *CPU.hard_negatives(student, bank, 30, *labels, True),
        *CPU.hard_negatives_gradient(weights, student, bank, index, True, True, True),
        loss,
        *CPU.anatomical_contrast_gradient(upstream, student, teacher, bank, index, lse, 0.5, True, True, True, True),
    ]


def assert_identical(results: list[Tensor], expected: list[Tensor]) -> None:
    for i, (x, y) in enumerate(zip(results, expected, strict=True)):
        assert torch.equal(x, y), f"tensor {i}"


def at_byte(offset: int) -> Callable[[Tensor], Tensor]:
    """Puts a tensor's data `offset` bytes after a 64-byte boundary."""

    def place(x: Tensor) -> Tensor:
        size = x.numel() * x.element_size()
        memory = torch.zeros(size + 128, dtype=torch.uint8)
        start = -memory.data_ptr() % 64 + offset
        buffer = memory.numpy().data[start : start + size]
        moved = torch.frombuffer(buffer, dtype=x.dtype).view(x.shape)
        moved.copy_(x)
        assert moved.data_ptr() % 64 == offset
        return moved

    return place


def test_repeats_bit_for_bit() -> None:
    assert_identical(everything(), everything())


def test_number_of_threads_does_not_show() -> None:
    usual = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(everything())
    torch.set_num_threads(usual)
    assert_identical(results[1], results[0])
    assert_identical(results[2], results[0])


@pytest.mark.parametrize("offset", [1, 4, 12])
def test_unaligned_float32(offset: int) -> None:
    assert_identical(everything(place=at_byte(offset)), everything())


@pytest.mark.parametrize("offset", [1, 2, 6])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_unaligned_half(offset: int, dtype: torch.dtype) -> None:
    assert_identical(everything(dtype, at_byte(offset)), everything(dtype))


def test_strides() -> None:
    def scatter(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    def reverse_strided(x: Tensor) -> Tensor:
        wide = x.new_full((*x.shape[:2], 2 * x.shape[2] + 3), torch.nan)
        view = wide[..., 3::2]
        view.copy_(x)
        return view

    for dtype in (torch.float32, torch.bfloat16):
        expected = everything(dtype)
        assert_identical(everything(dtype, scatter), expected)
        assert_identical(everything(dtype, reverse_strided), expected)


def test_python_threads_at_once() -> None:
    torch.manual_seed(3)
    student, teacher, bank = (x.unsqueeze(0) for x in neighbours(150, 700, 20))

    def call(_: int) -> list[Tensor]:
        return list(CPU.action_contrast(student, teacher, bank, 30, 0.1, 0.05, None, None, True, True, True))

    expected = call(0)
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(call, range(24)):
            assert_identical(results, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_after_use() -> None:
    script = """
import os, torch
from action_kernels.backends.cpu.action_contrast import action_contrast
torch.set_num_threads(2)
x = torch.randn(1, 300, 40)
call = lambda: action_contrast(x, x.flip(1), x, 9, 0.1, 0.05, None, None, True, True, True)
expected = call()
child = os.fork()
if child == 0:
    os._exit(0 if all(torch.equal(a, b) for a, b in zip(call(), expected)) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert all(torch.equal(a, b) for a, b in zip(call(), expected))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


IN_A_CHILD = """
import os, signal, sys, torch
torch.set_num_threads(2)
a = torch.randn(1000, 1000)
a.exp(), a @ a, a.sort()  # PyTorch's threads, which are OpenMP's
x = a[:300, :40].clone()  # so small that only the kernels want threads: in the child PyTorch's own would wait for ever
{before}

def work():
    import action_kernels
    with action_kernels.use_backend("cpu"):
        leaf, bank = x.clone().requires_grad_(), x.clone().requires_grad_()
        result = action_kernels.action_contrast(leaf, x.flip(0), bank, 9)
        index = action_kernels.relation_negatives(*(torch.arange(3600) % 3,) * 2, torch.ones(3, 3), 9, seed=1)
        loss = result.distillation + action_kernels.anatomical_contrast(leaf, x.flip(0), bank, result.index)
        (loss + result.similarity.sum()).backward()
    return [loss.detach(), leaf.grad, bank.grad, index]

def in_a_child(task):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # instead of waiting for ever
        try:
            task()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, status

def several():
    first = work()
    for _ in range(5):
        assert all(torch.equal(x, y) for x, y in zip(work(), first))
    if os.path.isdir("/proc/self/task"):
        assert len(os.listdir("/proc/self/task")) < 8  # no thread is left behind

{children}
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(
    ("before", "children"),
    [
        ("import action_kernels", "in_a_child(several)"),
        pytest.param(
            "", "in_a_child(several)", marks=pytest.mark.skipif(sys.platform != "linux", reason="not known there")
        ),
        (
            "from action_kernels.backends import cpu",
            "in_a_child(several); work(); in_a_child(lambda: in_a_child(several))",
        ),
    ],
    ids=["imported before", "imported in the child", "used before, in a grandchild"],
)
def test_fork_after_others_used_threads(before: str, children: str) -> None:
    script = IN_A_CHILD.replace("{before}", before).replace("{children}", children)
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_stays_in_its_row(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    student, teacher, bank = (x.unsqueeze(0).to(dtype) for x in neighbours(40, 300, 20))
    clean = CPU.action_contrast(student, teacher, bank, 9, 0.1, 0.05, None, None, True, True, True)
    student[0, 5, 3] = torch.nan
    result = CPU.action_contrast(student, teacher, bank, 9, 0.1, 0.05, None, None, True, True, True)
    assert result.kl[0, 5].isnan() and result.student_grad[0, 5].isnan().all()
    assert (result.index[0, 5] == -1).all()
    others = torch.arange(40) != 5
    for x, y in zip(result, clean, strict=True):
        queries = 2 if x is result.statistics else 1
        assert torch.equal(*(z.movedim(queries, 0)[others] for z in (x, y)))
    bank[0, 7] = torch.nan
    result = CPU.action_contrast(student, teacher, bank, 300, 0.1, 0.05, None, None, True, True, True)
    assert result.kl.isnan().all()
    assert not (result.index == 7).any()
    assert ((result.index >= 0).sum(-1)[0, others] == 299).all()
