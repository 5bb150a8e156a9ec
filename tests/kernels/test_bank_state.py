"""A MemoryBank's state: tensors alone, checked when they are loaded, all of them or none."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from action_kernels import MemoryBank


def filled(capacity: int = 8, pushed: int = 5, **options: Any) -> MemoryBank:
    options = {"labeled": True} | options
    bank = MemoryBank(capacity, 4, **options)
    bank.push(torch.randn(pushed, 4), torch.arange(pushed) if bank.labeled else None)
    return bank


def contents(bank: MemoryBank) -> tuple:
    labels = None if bank.labels is None else bank.labels.tolist()
    return len(bank), bank.level.tolist(), bank.rows.tolist(), labels, bank.features.dtype


def assert_goes_on(bank: MemoryBank, like: MemoryBank) -> None:
    """The same rows now and after more pushes, in the same slots."""
    like = copy.deepcopy(like)
    for _ in range(4):
        assert contents(bank) == contents(like)
        rows, labels = torch.randn(3, 4), torch.arange(3)
        for each in (bank, like):
            each.push(rows, labels if each.labeled else None)


def test_every_entry_is_a_tensor_of_its_own() -> None:
    state = filled().state_dict(prefix="bank.")
    assert list(state) == ["bank.features", "bank.classes", "bank.level"]
    assert list(filled(labeled=False).state_dict()) == ["features", "level"]
    assert all(isinstance(x, Tensor) and x.is_contiguous() for x in state.values())
    assert state["bank.level"].tolist() == [5, 5] and filled(8, 13).level.tolist() == [5, 8]


def test_safetensors_round_trip() -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    bank, other = filled(8, 13), filled(8, 2)
    other.load_state_dict(safetensors.load(safetensors.save(bank.state_dict())))
    assert_goes_on(other, bank)


@pytest.mark.parametrize("pushed", [0, 5, 8, 13])
@pytest.mark.parametrize("assign", [False, True])
def test_older_states_with_an_extra_dictionary_are_loaded(pushed: int, assign: bool) -> None:
    bank, other = filled(8, pushed), filled(8, 3)
    state = bank.state_dict()
    following, rows = state.pop("level").tolist()
    state["_extra_state"] = {"next": following, "filled": rows}
    model = torch.nn.ModuleDict({"bank": other})
    model.load_state_dict({f"bank.{name}": value for name, value in state.items()}, assign=assign)
    assert_goes_on(other, bank)


def misfits() -> dict[str, tuple[MemoryBank, dict]]:
    """A bank of its own, and a state that does not fit it."""
    good = filled(8, 5).state_dict()
    level = {
        "next slot beyond the ring": [8, 8],
        "more rows than slots": [1, 9],
        "a hole before the next slot": [5, 4],
        "negative": [-1, -1],
        "of three numbers": [5, 5, 5],
    }
    cases = {f"level {name}": (filled(8, 3), good | {"level": torch.tensor(v)}) for name, v in level.items()}
    return cases | {
        "smaller": (filled(4, 2), good),
        "larger": (filled(16, 2), good),
        "another dim": (filled(8, 2), good | {"features": torch.zeros(8, 5)}),
        "grouped": (filled(8, 2), good | {"features": torch.zeros(1, 8, 4)}),
        "labels of another length": (filled(8, 2), good | {"classes": torch.zeros(7, dtype=torch.int64)}),
        "fractions as labels": (filled(8, 2), good | {"classes": torch.zeros(8)}),
        "integers as rows": (filled(8, 2), good | {"features": torch.zeros(8, 4, dtype=torch.int64)}),
        "complex rows": (filled(8, 2), good | {"features": torch.zeros(8, 4, dtype=torch.complex64)}),
        "level of fractions": (filled(8, 2), good | {"level": torch.tensor([5.0, 5.0])}),
        "an extra dictionary of something else": (
            filled(8, 2),
            {"features": good["features"], "classes": good["classes"], "_extra_state": {"next": 3}},
        ),
    }


@pytest.mark.parametrize("name", misfits())
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_a_state_that_does_not_fit_raises_and_changes_nothing(name: str, strict: bool, assign: bool) -> None:
    bank, state = misfits()[name]
    before = copy.deepcopy(bank)
    with pytest.raises(RuntimeError, match="features: the bank holds|classes: the bank holds|level: "):
        bank.load_state_dict(state, strict=strict, assign=assign)
    assert_goes_on(bank, before)


@pytest.mark.parametrize("absent", ["features", "classes", "level", "features classes", "features classes level"])
@pytest.mark.parametrize("capacity", [4, 8, 16])
def test_a_state_in_part_leaves_the_bank_as_it_was(absent: str, capacity: int) -> None:
    bank = filled(capacity, 3)
    before = copy.deepcopy(bank)
    state = {name: value for name, value in filled(8, 7).state_dict().items() if name not in absent.split()}
    with pytest.raises(RuntimeError, match="Missing key"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bank.load_state_dict(state)
    assert_goes_on(copy.deepcopy(bank), before)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert bank.load_state_dict(state, strict=False).missing_keys == absent.split()
    assert_goes_on(bank, before)
    assert [str(x.message) for x in told] == [
        f"the memory bank itself is left as it was: the state lacks its {' and '.join(absent.split())}"
    ] * bool(state)


def test_a_labelled_state_in_a_bank_without_labels() -> None:
    bank, state = filled(8, 2, labeled=False), filled(8, 7).state_dict()
    with pytest.raises(RuntimeError, match='Unexpected key.*"classes"'):
        bank.load_state_dict(state)
    assert bank.load_state_dict(state, strict=False).unexpected_keys == ["classes"]
    assert torch.equal(bank.features, state["features"]) and len(bank) == 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("assign", [False, True])
def test_a_bank_keeps_its_dtype_and_its_own_memory(dtype: torch.dtype, assign: bool) -> None:
    source, bank = filled(8, 6), filled(8, 2, dtype=dtype)
    bank.load_state_dict(source.state_dict(), assign=assign)
    assert bank.features.dtype == dtype and torch.equal(bank.rows, source.rows.to(dtype))
    twin = filled(8, 2)
    twin.load_state_dict(source.state_dict(), assign=assign)
    before = contents(source)
    twin.push(torch.randn(8, 4), torch.arange(8))
    assert contents(source) == before


def test_from_the_meta_device() -> None:
    for pushed in (0, 3):
        bank = MemoryBank(8, 4, labeled=True, device="meta")
        bank.push(torch.randn(pushed, 4, device="meta"), torch.zeros(pushed, dtype=torch.int64, device="meta"))
        bank.to_empty(device="cpu")
        assert len(bank) == 0 and not bank.features.any() and (bank.classes == -1).all()
        bank.push(torch.randn(3, 4), torch.arange(3))
        assert bank.labels.tolist() == [0, 1, 2]
    bank = MemoryBank(8, 4, labeled=True, device="meta")
    source = filled(8, 6)
    bank.load_state_dict(source.state_dict(), assign=True)
    assert_goes_on(bank, source)


def test_copies_have_a_fill_level_of_their_own() -> None:
    bank = filled(8, 5)
    file = io.BytesIO()
    torch.save(bank, file)
    file.seek(0)
    for other in (copy.deepcopy(bank), pickle.loads(pickle.dumps(bank)), torch.load(file, weights_only=False)):
        assert_goes_on(other, bank)
        assert len(bank) == 5


_TWO_RANKS = """
import os, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from action_kernels import MemoryBank
other = os.fork()
rank = 0 if other else 1
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)
        self.bank = MemoryBank(8, 4, labeled=True, normalize=False)
    def forward(self, x):
        return self.norm(self.layer(x))

def push(count):
    model.bank.push(torch.full((count, 4), float(rank)), torch.full((count,), rank))

model = Model()
push(2 + rank)  # before the first synchronisation
parallel = DistributedDataParallel(model)
for _ in range(3):  # and before those of every forward pass
    parallel(torch.randn(5, 4)).sum().backward()
    push(1)
assert len(model.bank) == 5 + rank, len(model.bank)
assert (model.bank.rows == rank).all() and (model.bank.labels == rank).all(), model.bank.rows
dist.destroy_process_group()
if other:
    assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == 0
"""


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available() and hasattr(os, "fork")),
    reason="no gloo or no fork here",
)
def test_every_process_of_data_parallel_training_keeps_its_own_rows(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _TWO_RANKS, str(tmp_path / "meeting")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
