"""The divergence's gradient in the student from log-sum-exps over more rows than are given: parts of a bank."""

from __future__ import annotations

import formulas
import pytest
import torch
from formulas import DTYPES, assert_as_good_as_plain, differentiate, neighbours
from torch import Tensor

import action_kernels
from action_kernels.backends import chosen, cpu

OPS = torch.ops.action_kernels
TEMPS = (0.1, 0.02)


def of_the_parts(student: Tensor, teacher: Tensor, bank: Tensor, sizes: list[int], normalize: bool = True) -> Tensor:
    """The gradients of parts of these sizes, added up.

    The log-sum-exps are those of the parts, from the very scores that the gradient sees again, merged.
    """
    parts = bank.split(sizes, dim=1)
    found = [
        OPS.action_contrast(student, teacher, part, 0, *TEMPS, None, None, normalize, False, True) for part in parts
    ]
    lses = torch.stack([statistics[:2] for _, statistics, *_ in found]).logsumexp(0)
    gradient = OPS.action_contrast_student_gradient
    name = chosen() or ""
    return sum(gradient(student, teacher, part, lses, *TEMPS, normalize, name) for part in parts)


def exact_gradient(student: Tensor, teacher: Tensor, bank: Tensor, normalize: bool = True) -> Tensor:
    def divergence(s: Tensor) -> Tensor:
        return formulas.distillation(s, teacher, bank, *TEMPS, normalize)

    return differentiate(divergence, [student], torch.ones(student.shape[:2]))[1]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("sizes", [[11], [3, 8], [1] * 4], ids=str)
def test_parts_add_up_in_float64(sizes: list[int], normalize: bool) -> None:
    rows = [0.4 * x.double() for x in neighbours(7, sum(sizes), 5, 2)]
    found = of_the_parts(*rows, sizes, normalize)
    assert max(formulas.errors(found, exact_gradient(*rows, normalize))) < 1e-13


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    "n, d, sizes", [(1, 5, [300]), (2, 12, [40, 7]), (67, 33, [200, 59]), (19, 129, [1, 300])], ids=str
)
def test_parts_add_up(backend: str, device: str, n: int, d: int, sizes: list[int], normalize: bool, dtype) -> None:
    """As good as autograd's gradient through plain PyTorch in float32, on the same rounded rows."""
    scale = 1.0 if normalize else d**-0.5
    rows = [(scale * x).to(dtype) for x in neighbours(n, sum(sizes), d, 2)]
    ours = of_the_parts(*(x.to(device) for x in rows), sizes, normalize)
    assert ours.dtype == torch.float32
    plain, exact = (exact_gradient(*(x.to(t) for x in rows), normalize) for t in (torch.float32, torch.float64))
    similarity = 1.0 if normalize else formulas.similarities(rows[0].double(), rows[2].double(), False).abs().max()
    # In the student's dtype, as it ends: bfloat16 rows may take weights of 11 bits.
    assert_as_good_as_plain([ours.to(dtype)], [plain], [exact], min(TEMPS), float(similarity))


def test_what_a_bank_contributes_by_itself_is_its_gradient(backend: str, device: str) -> None:
    rows = [x.to(device) for x in neighbours(9, 130, 20, 1)]
    result = OPS.action_contrast(*rows, 0, *TEMPS, None, None, True, True, True)
    again = OPS.action_contrast_student_gradient(*rows, result[1][:2], *TEMPS, True, backend)
    torch.testing.assert_close(again, result[2], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_a_long_part(threads: int) -> None:
    rows = neighbours(5, 40_000, 16, 1)
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with action_kernels.use_backend("cpu"):
            ours = of_the_parts(*rows, [30_000, 10_000])
    finally:
        torch.set_num_threads(usual)
    exact = exact_gradient(*(x.double() for x in rows))
    assert max(formulas.errors(ours, exact)) < 1e-5
