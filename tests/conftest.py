"""For every test: the same random numbers each time, and Triton's interpreter, which runs the Triton backend's kernels
on a CPU; set up before anything imports Triton."""

from __future__ import annotations

import os

# Tests run in several processes; each, and what it starts, computes on one thread unless it says otherwise.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(20230614)
