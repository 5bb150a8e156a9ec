"""Sharp softmaxes underflow. The CPU kernels give 0 where a result is too small for a normal float32: x86 processors
take some hundred cycles for a subnormal number (a distillation with the published temperatures up to 2.3 times as
long, measured on an Intel Xeon)."""

from __future__ import annotations

import platform

import pytest
import torch
from torch import Tensor

from action_kernels import anatomical_contrast, contrastive_distillation, use_backend
from action_kernels.backends import cpu

pytestmark = [
    pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable())),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86 is slow on subnormal numbers"),
    pytest.mark.usefixtures("variant"),
]

FEATURES = 24
TEMP = 0.01
TINY = torch.finfo(torch.float32).tiny


def one_query_and_distant_rows(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A query [1, D] on the first axis and a bank [D, D]: the query itself, then rows of lower and lower score, each
    with an axis of its own, where only its own probability arrives as a gradient."""
    query = torch.eye(1, FEATURES, dtype=dtype)
    bank = torch.eye(FEATURES, dtype=dtype)
    bank[1:, 0] = torch.linspace(0.3, -0.1, FEATURES - 1, dtype=dtype)
    return query.requires_grad_(), bank.requires_grad_()


def distillation(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    query, bank = one_query_and_distant_rows(dtype)
    teacher = 1.05 * query.detach()
    contrastive_distillation(query, teacher, bank, student_temp=TEMP, teacher_temp=TEMP, normalize=False).backward()
    return query.grad, bank.grad


def info_nce(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    query, bank = one_query_and_distant_rows(dtype)
    index = torch.arange(1, FEATURES)[None]
    anatomical_contrast(query, query.detach(), bank, index, temp=TEMP, normalize=False).backward()
    return query.grad, bank.grad


def is_subnormal(x: Tensor) -> Tensor:
    return (x != 0) & (x.abs() < TINY)


def check_flushed(gradients) -> None:
    with use_backend("reference"):
        exact = gradients(torch.float64)
    ours = gradients(torch.float32)
    for expected, got in zip(exact, ours, strict=True):
        assert is_subnormal(expected).any() and (expected.abs() > TINY).any()
        assert not is_subnormal(got).any()
        # A probability that underflows is missing after the division by the temperature.
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=2 * TINY / TEMP)


def test_distillation_makes_no_subnormal_numbers() -> None:
    check_flushed(distillation)


def test_info_nce_makes_no_subnormal_numbers() -> None:
    check_flushed(info_nce)


def test_the_callers_floating_point_mode_comes_back() -> None:
    distillation(torch.float32)
    info_nce(torch.float32)
    assert (torch.tensor([TINY]) / 2).item() > 0
