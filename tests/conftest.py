"""For every test: the same random numbers each time, and Triton's interpreter, which runs the Triton backend's kernels
on a CPU; set up before anything imports Triton."""

from __future__ import annotations

import contextlib
import os

# Tests run in several processes; each, and what it starts, computes on one thread unless it says otherwise.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def _patch_language_once() -> None:
    """The interpreter patches triton.language again at each call inside a kernel, which takes most of its time."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang
    patched: set[tuple[bool, bool]] = set()
    known: dict[Callable, tuple[bool, bool]] = {}
    lasting = SimpleNamespace(restore=lambda: None)

    def once(fn: Callable) -> SimpleNamespace:
        if fn not in known:
            modules = list(fn.__globals__.values())
            known[fn] = any(x is tl for x in modules), any(x is tl.core for x in modules)
        if known[fn] not in patched:
            patched.add(known[fn])
            patch(fn)
        return lasting

    interpreter._patch_lang = once


if os.environ.get("TRITON_INTERPRET") == "1":
    with contextlib.suppress(ImportError, AttributeError):  # no Triton here, or another version: slower
        _patch_language_once()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(20230614)
