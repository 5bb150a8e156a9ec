"""The operator tests run once per backend; one that is not built here is skipped with its reason."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

import action_kernels

# Where each backend's tests run. Another backend joins the whole suite with a line here.
DEVICES = {"reference": "cpu", "cpu": "cpu", "triton": "cuda" if torch.cuda.is_available() else "cpu"}

# Names (comma-separated) that must run: there a missing backend is a failure, not a skip.
REQUIRED = set(filter(None, os.environ.get("ACTION_KERNELS_TEST_BACKENDS", "").split(",")))


@pytest.fixture(params=DEVICES)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the backend in force during the test."""
    name = request.param
    state = action_kernels.backends()[name]
    if state != "ready" and name not in REQUIRED:
        pytest.skip(f"backend {name}: {state}")
    with action_kernels.use_backend(name):
        yield name


@pytest.fixture
def device(backend: str) -> str:
    return DEVICES[backend]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(20230614)
