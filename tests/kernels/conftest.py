"""The operator tests run once per backend; one that is not built here is skipped with its reason."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import nullcontext

import cuda_host
import pytest
import torch
from kernel_functions import WHOLE

import action_kernels
from action_kernels.backends import cpu

GPU = "cuda" if torch.cuda.is_available() else "cpu"

# Where each backend's tests run. Another backend joins the whole suite with a line here.
DEVICES = {
    "reference": "cpu",
    "cpu": "cpu",
    "triton": GPU,
    "cuda": GPU,
}

# Without a GPU the CUDA kernels run on the CPU, compiled for it.
if GPU == "cpu" and "ACTION_CUDA_HOST" not in os.environ and not cuda_host.missing():
    os.environ["ACTION_CUDA_HOST"] = str(cuda_host.build())
CUDA_HOST = os.environ.get("ACTION_CUDA_HOST")

# Names (comma-separated) that must run: there a missing backend is a failure, not a skip.
REQUIRED = set(filter(None, os.environ.get("ACTION_KERNELS_TEST_BACKENDS", "").split(",")))


# `pytest -m gpu` selects what runs on a GPU; where there is none, that is nothing.
@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.gpu] * (DEVICES[name] == "cuda")) for name in DEVICES])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the backend in force during the test."""
    name = request.param
    state = action_kernels.list_backends()[name]
    if state != "ready" and name not in REQUIRED:
        pytest.skip(f"backend {name}: {state}")
    checks = cuda_host.checked(CUDA_HOST) if name == "cuda" and CUDA_HOST else nullcontext()
    with checks, action_kernels.use_backend(name):
        yield name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test that uses an operator which its backend lacks is skipped, unless the backend has to have them all."""
    try:
        return (yield)
    except Exception as error:
        backend = getattr(item, "funcargs", {}).get("backend", "reference")
        lacks = re.search(f"backend '{backend}' was asked for by use_backend but .*: it has no (\\w+)", str(error))
        if lacks and backend not in WHOLE:
            pytest.skip(lacks[0])
        raise


@pytest.fixture
def device(backend: str) -> str:
    return DEVICES[backend]


@pytest.fixture(params=cpu.variants())
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of the native CPU module that this machine runs, in use with that backend."""
    best = cpu.variant()
    cpu.use_variant(request.param)
    with action_kernels.use_backend("cpu"):
        yield request.param
    cpu.use_variant(best)
