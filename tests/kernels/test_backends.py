"""The registry: states, choice by name, by environment, by device and dtype; fallback said once; the report."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from kernel_functions import OPERATORS, operator_file

import action_kernels
from action_kernels import contrastive_distillation, use_backend
from action_kernels.backends import cpu, native, reference, select

registry = action_kernels.backends
ROWS = (torch.float32,) * 3


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A registry that has remembered nothing, and forgets this test."""
    caches = (registry._load, registry._automatic, registry._function, registry._say_fallback)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.delenv(registry.ENVIRONMENT_VARIABLE, raising=False)
    yield monkeypatch
    for cache in caches:
        cache.cache_clear()


def register(fresh: pytest.MonkeyPatch, name: str, module: types.ModuleType | None, device: str = "cpu") -> None:
    """Add a backend as a later one would be added: a package, and its name with the device that chooses it."""
    others = {other: None for other in registry._BACKENDS}
    fresh.setattr(registry, "_BACKENDS", {**others, name: device})
    if module is not None:
        module.__name__ = f"{registry.__name__}.{name}"
        fresh.setitem(sys.modules, module.__name__, module)
        for operator in OPERATORS:
            fresh.setitem(sys.modules, f"{module.__name__}.{operator}", operator_file("reference", operator))


def fake_backend(unavailable: str | None = None, unsupported: str | None = None) -> types.ModuleType:
    module = types.ModuleType(reference.__name__)  # with the operators of the reference
    module.unavailable = lambda: unavailable
    module.supports = lambda device_type, dtypes: unsupported if torch.bfloat16 in dtypes else None
    return module


def test_states(fresh: pytest.MonkeyPatch) -> None:
    register(fresh, "broken", None)
    states = action_kernels.list_backends()
    assert states["reference"] == "ready" and "cpu" in states
    assert states["broken"].startswith("ModuleNotFoundError: ")


def test_reference_is_always_there() -> None:
    with use_backend("reference"):
        assert select("cpu", (torch.float64,)) is reference
        assert select("cuda", ROWS) is reference


def test_unknown_names(fresh: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="use_backend names an unknown backend 'gpu'; the backends are reference,"):
        with use_backend("gpu"):
            pass
    fresh.setenv(registry.ENVIRONMENT_VARIABLE, "gpu")
    with pytest.raises(ValueError, match="the environment variable ACTION_KERNELS_BACKEND names an unknown"):
        select("cpu", ROWS)


@pytest.mark.parametrize("name", ["gpu", "", 3, ["cpu"]], ids=str)
def test_a_name_is_checked_at_the_call(name: object) -> None:
    with pytest.raises(ValueError, match="use_backend names an unknown backend .*; the backends are reference,"):
        use_backend(name)


def test_a_call_alone_changes_nothing() -> None:
    use_backend("reference")
    assert registry.chosen() is None


def test_a_choice_may_be_entered_again_and_decorate() -> None:
    choice = use_backend("reference")
    with choice, use_backend(None), choice:
        assert registry.chosen() == "reference"
    assert registry.chosen() is None
    seen = use_backend("reference")(registry.chosen)
    assert seen() == seen() == "reference" and registry.chosen() is None
    with pytest.raises(KeyError), choice:
        raise KeyError
    assert registry.chosen() is None


def test_a_decorated_function_runs_in_several_threads_at_once() -> None:
    meeting = threading.Barrier(2, timeout=30)

    @use_backend("reference")
    def wait() -> str | None:
        meeting.wait()
        return registry.chosen()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: (wait(), registry.chosen()), range(2))) == [("reference", None)] * 2


@pytest.mark.parametrize(
    ("package", "found"),
    [
        ("__version__ = '3.2.0'", "found 3.2.0: install a newer torch"),
        ("__version__ = '2.3.1+git'", "found 2.3.1+git: install"),
        ("", "found unknown: install"),
        ("raise ImportError('libcuda is missing')", "found none (libcuda is missing): install"),
    ],
)
def test_another_release_of_triton_is_named(tmp_path: Path, package: str, found: str) -> None:
    (tmp_path / "triton.py").write_text(package)
    code = "from action_kernels.backends import _load; print(_load('triton'))"
    paths = os.pathsep.join((str(tmp_path), *sys.path))
    environment = {**os.environ, "PYTHONPATH": paths, "TRITON_INTERPRET": "1"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.startswith("needs Triton 3.4 or later (PyTorch 2.8") and found in out.stdout


def test_a_named_backend_raises_with_its_reason(fresh: pytest.MonkeyPatch) -> None:
    register(fresh, "other", fake_backend(unavailable="no such instruction"))
    with pytest.raises(RuntimeError, match="'other' was asked for by use_backend but cannot run: no such instruction"):
        with use_backend("other"):
            pass
    fresh.setenv(registry.ENVIRONMENT_VARIABLE, "other")
    rows = torch.randn(3, 4)
    with pytest.raises(RuntimeError, match="asked for by the environment variable ACTION_KERNELS_BACKEND but cannot"):
        contrastive_distillation(rows, rows, rows)


def test_a_named_backend_raises_where_it_does_not_support_the_call(fresh: pytest.MonkeyPatch) -> None:
    register(fresh, "other", fake_backend(unsupported="takes float32 only"))
    rows = torch.randn(3, 4)
    with use_backend("other"):
        contrastive_distillation(rows, rows, rows)
        with pytest.raises(RuntimeError, match="cannot run this call: takes float32 only"):
            contrastive_distillation(rows, rows, rows.bfloat16())
    contrastive_distillation(rows, rows, rows.bfloat16())  # the automatic choice goes elsewhere


def test_environment_variable(fresh: pytest.MonkeyPatch) -> None:
    other = fake_backend()
    register(fresh, "other", other)
    fresh.setenv(registry.ENVIRONMENT_VARIABLE, "reference")
    assert select("cpu", ROWS) is reference
    with use_backend("other"):
        assert select("cpu", ROWS) is other
        with use_backend(None):
            assert select("cpu", ROWS) is reference
    fresh.setenv(registry.ENVIRONMENT_VARIABLE, "")
    assert select("cpu", ROWS) is other


def test_automatic_choice(fresh: pytest.MonkeyPatch) -> None:
    other = fake_backend(unsupported="float32 only")
    register(fresh, "other", other, device="somewhere")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a ready backend is no fallback, nor is a dtype that only the reference takes
        assert select("somewhere", ROWS) is other
        assert select("somewhere", (torch.bfloat16,)) is reference


def test_fallback_is_said_once(fresh: pytest.MonkeyPatch) -> None:
    register(fresh, "other", fake_backend(unavailable="not built"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for dtype in (torch.float32, torch.float16, torch.float32):
            assert select("cpu", (dtype,)) is reference
        assert select("elsewhere", ROWS) is reference
        assert select("elsewhere", ROWS) is reference
    assert [str(w.message) for w in said] == [
        "action_kernels runs on plain PyTorch on cpu (other: not built)",
        "action_kernels runs on plain PyTorch on elsewhere (no fused backend for elsewhere)",
    ]


def test_float64_goes_to_the_reference(fresh: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert select("cpu", (torch.float64,)) is reference
    if action_kernels.list_backends()["cpu"] == "ready":
        with use_backend("cpu"), pytest.raises(RuntimeError, match="float64"):
            select("cpu", (torch.float64,))


def test_choice_belongs_to_its_thread() -> None:
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(registry.chosen()))
        thread.start()
        thread.join()
        assert registry.chosen() == "reference"
    assert seen == [None] and registry.chosen() is None
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert registry.chosen() is None


def test_report() -> None:
    report = subprocess.run([sys.executable, "-m", "action_kernels"], capture_output=True, text=True, check=True)
    lines = dict(line.split(maxsplit=1) for line in report.stdout.splitlines() if not line.startswith("backend"))
    assert lines["torch"] == torch.__version__
    states = action_kernels.list_backends()
    for name, state in states.items():
        assert any(line.split(maxsplit=2) == ["backend", name, state] for line in report.stdout.splitlines())
    if states["cpu"] == "ready":
        with_openmp = "with OpenMP" if native.module().openmp else "without OpenMP: on one thread"
        assert lines["cpu"].split(maxsplit=1) == ["kernels", f"{cpu.variant()}, built {with_openmp}"]


def test_importing_touches_no_gpu_and_no_backend() -> None:
    code = (
        "import sys, torch, action_kernels; assert not torch.cuda.is_initialized(); "
        "print([m for m in sys.modules if m.startswith('action_kernels.backends.')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "['action_kernels.backends.choice', 'action_kernels.backends.interface']"


def test_an_operator_that_a_backend_lacks_goes_to_the_next(fresh: pytest.MonkeyPatch) -> None:
    register(fresh, "other", fake_backend())
    fresh.delitem(sys.modules, f"{registry.__name__}.other.hard_negatives")
    assert select("cpu", ROWS, "action_contrast").__name__.endswith("other")
    assert select("cpu", ROWS, "hard_negatives") is reference
    rows = torch.randn(3, 4)
    with use_backend("other"):
        contrastive_distillation(rows, rows, rows)
        with pytest.raises(RuntimeError, match="'other' was asked for by use_backend.* it has no hard_negatives"):
            action_kernels.hard_negatives(rows, rows, 1)


def test_the_package_of_the_backends_is_imported_by_its_name() -> None:
    import action_kernels.backends.reference as module

    assert module is reference and action_kernels.backends is registry
