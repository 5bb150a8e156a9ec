"""The CUDA launchers take nothing on trust: what does not fit is refused by name before a kernel sees an address.

Their arguments are recorded from calls of the operators. Without a GPU the kernels are those compiled for the CPU.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import pytest
import torch
from kernel_functions import Kernels
from torch import Tensor

import action_kernels
from action_kernels.backends import native

HOST = os.environ.get("ACTION_CUDA_HOST")
DEVICE = "cpu" if HOST else "cuda"

pytestmark = [pytest.mark.skipif(action_kernels.list_backends()["cuda"] != "ready", reason="no CUDA kernels")]
pytestmark += [pytest.mark.gpu] * (not HOST)

FILES = (
    "action_contrast",
    "anatomical_contrast",
    "bank_pass",
    "buffered",
    "finish_and_collect",
    "gradient",
    "hard_negatives",
    "indexed_rows",
    "merge_and_limit",
    "relation_negatives",
    "rows",
    "selection",
    "verdicts",
)
LAUNCHERS = (
    "bank_pass",
    "buffered",
    "contrast_gradient",
    "finish_and_collect",
    "indexed_bank_gradient",
    "info_nce",
    "info_nce_gradient",
    "merge_and_limit",
    "order_keys",
    "prepare",
    "query_terms",
    "relation_negatives",
    "selected_query_gradient",
    "verdicts",
)
# Raw rows are read in place, whatever their strides.
IN_PLACE = {*(("prepare", name) for name in ("query", "second", "bank")), ("finish_and_collect", "raw")} | {
    (launcher, "bank")
    for launcher in ("info_nce", "info_nce_gradient", "selected_query_gradient", "indexed_bank_gradient")
}
# Of another length they are as good: a bank that an index names, or whose scales are padded, rows to draw from, a scale
# that may be longer, sums of any number of splits.
ANY_LENGTH = {
    ("prepare", "query_scale"),
    ("prepare", "second_scale"),
    ("prepare", "bank_scale"),
    ("relation_negatives", "rows"),
    ("merge_and_limit", "sums"),
} | IN_PLACE
ANY_LENGTH |= {(launcher, "bank") for launcher in ("bank_pass", "contrast_gradient", "finish_and_collect", "verdicts")}
# Their first size is no number of groups, but of blocks or splits.
ANY_COUNT = {
    ("buffered", "buffer"),
    ("contrast_gradient", "partial"),
    ("finish_and_collect", "counts"),
    ("finish_and_collect", "partial"),
}
EXCUSED = {
    "with gaps": IN_PLACE,
    "a group too few": ANY_COUNT,
    "a row too few": ANY_LENGTH,
    "a row too many": ANY_LENGTH,
}


def launcher_of(params: NamedTuple) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(params).__name__.removesuffix("Params")).lower()


@cache
def recorded() -> dict[str, NamedTuple]:
    """Arguments that fit together: those of the last call of each launcher."""
    found: dict[str, NamedTuple] = {}

    def recorder(launch: Callable[..., None]) -> Callable[..., None]:
        def record(params: NamedTuple, x: Tensor) -> None:
            found[launcher_of(params)] = params
            launch(params, x)

        return record

    with pytest.MonkeyPatch.context() as patch:
        for file in FILES:
            module = import_module(f"action_kernels.backends.cuda.{file}")
            for name, value in list(vars(module).items()):
                if getattr(value, "__qualname__", "") == "bind.<locals>.launch":
                    patch.setattr(module, name, recorder(value))
        run_every_operator()
    return found


def run_every_operator() -> None:
    kernels = Kernels("cuda")
    groups, queries, rows, k, classes = 2, 5, 300, 3, 2
    student, teacher = torch.randn(2, groups, queries, 24).bfloat16().to(DEVICE)
    bank = torch.randn(groups, rows, 24).bfloat16().to(DEVICE)
    query_labels = torch.randint(classes, (groups, queries)).to(DEVICE)
    bank_labels = torch.randint(classes, (groups, rows)).to(DEVICE)
    temps = 0.1, 0.05
    result = kernels.action_contrast(student, teacher, bank, k, *temps, query_labels, bank_labels, True, True)
    kernels.hard_negatives_gradient(result.similarity, student, bank, result.index, True, True, True)
    loss, lse = kernels.anatomical_contrast(student, teacher, bank, result.index, 0.5, True)
    kernels.anatomical_contrast_gradient(loss, student, teacher, bank, result.index, lse, 0.5, True, True, True, True)
    thresholds = torch.ones(groups, classes, classes, dtype=torch.int64).cumsum(-1).to(DEVICE)
    start = torch.tensor([[0, 100, rows]] * groups, device=DEVICE)
    order = torch.arange(rows, device=DEVICE).repeat(groups, 1)
    kernels.relation_negatives(query_labels, thresholds, start, order, k, 1)
    lse, _ = kernels.log_sum_exp(student, bank, 0.1, True, True)
    kernels.log_sum_exp_bank_gradient(lse, student, bank, lse, 0.1, True)
    statistics = result.logit_gap, result.student_lse, result.teacher_lse
    kernels.action_contrast_bank_gradient(result.kl, student, teacher, bank, *statistics, *temps, True)
    kernels.hard_negatives(student, bank, rows, query_labels, bank_labels, True)
    # The last calls are those that are recorded: with everything that a launcher can be given.
    kernels.hard_negatives(student, bank, k, query_labels, bank_labels, False)
    kernels.action_contrast(student, teacher, bank, k, *temps, query_labels, bank_labels, False, True)


def refusal(launcher: str, **others: Any) -> str:
    """What the launcher says to its recorded arguments with others in place of some; nothing may be written."""
    library = import_module("action_kernels.backends.cuda.library")
    params = recorded()[launcher]._replace(**others)
    tensors = [x for x in params if isinstance(x, Tensor) and not x.is_meta]
    before = [x.clone() for x in tensors]
    with pytest.raises(ValueError, match=f"^{launcher}: ") as error, library.on_device(tensors[0]):
        native.bind(library.launchers(), launcher, type(params))(params)
    for x, copy in zip(tensors, before, strict=True):
        torch.testing.assert_close(x, copy, rtol=0, atol=0, equal_nan=True)
    return str(error.value)


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "another dtype": lambda x: x.to(torch.float64 if x.dtype != torch.float64 else torch.float32),
    "int32": lambda x: x.to(torch.int16 if x.dtype == torch.int32 else torch.int32),
    "a group too few": lambda x: x[:1],
    "a row too few": lambda x: x[:, :-1].contiguous(),
    "a row too many": lambda x: torch.cat([x, x[:, :1]], 1),
    "flat": lambda x: x.flatten(),
    "a dimension more": lambda x: x.unsqueeze(-1),
    "elsewhere": lambda x: x.to("meta"),
    "with gaps": lambda x: torch.stack([x, x], -1)[..., 0],
}


def test_every_launcher_is_recorded() -> None:
    library = import_module("action_kernels.backends.cuda.library")
    assert sorted(recorded()) == sorted(library.launchers()) == sorted(LAUNCHERS)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_tensor_that_does_not_fit_is_refused(launcher: str, fault: str) -> None:
    for name, x in recorded()[launcher]._asdict().items():
        if not isinstance(x, Tensor) or (x.dim() < 2 and fault not in ("another dtype", "int32", "elsewhere")):
            continue
        if (launcher, name) in EXCUSED.get(fault, ()):
            continue
        said = refusal(launcher, **{name: FAULTS[fault](x)})
        assert " must be " in said and ", got " in said, f"{name}: {said}"
        if fault == "with gaps":
            assert f"{launcher}: {name} must be contiguous" in said, said


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_tensor_that_is_missing_is_named(launcher: str) -> None:
    params = recorded()[launcher]
    for name in params._fields:
        if type(params).__annotations__[name] == "Tensor":
            assert ", got None" in refusal(launcher, **{name: None})


@pytest.mark.parametrize("launcher", ["bank_pass", "buffered", "contrast_gradient", "verdicts"])
def test_labels_come_in_pairs(launcher: str) -> None:
    assert "query_labels must be" in refusal(launcher, query_labels=None)
    assert "bank_labels must be" in refusal(launcher, bank_labels=None)


def test_labels_are_narrowed_with_a_place_for_them() -> None:
    for name in ("labels", "narrow_labels"):
        assert f"{name} must be" in refusal("prepare", **{name: None})


@pytest.mark.parametrize("launcher", ["bank_pass", "buffered", "contrast_gradient", "finish_and_collect", "verdicts"])
def test_rows_that_are_copied_in_pieces_are_padded_and_aligned(launcher: str) -> None:
    params = recorded()[launcher]
    names = [name for name in ("student", "teacher", "query", "bank") if hasattr(params, name)]
    narrow = {name: getattr(params, name)[..., :24].contiguous() for name in names}
    if launcher == "contrast_gradient":
        narrow["partial"] = params.partial[..., :24].contiguous()
    assert f"{names[0]} must be padded to whole pieces of 32 bytes" in refusal(launcher, **narrow)
    for name in names:
        x = getattr(params, name)
        shifted = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
        assert f"{name} must be aligned to 16 bytes" in refusal(launcher, **{name: shifted})


@pytest.mark.parametrize("launcher", ["info_nce", "indexed_bank_gradient"])
def test_rows_that_are_read_four_features_at_a_time_are_aligned(launcher: str) -> None:
    x = recorded()[launcher].query
    shifted = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    assert "query must be aligned to 16 bytes" in refusal(launcher, query=shifted)


def test_splits_cover_the_bank_in_whole_tiles() -> None:
    for launcher in ("bank_pass", "buffered", "verdicts"):
        span = recorded()[launcher].span
        for wrong in (0, -span, span + 1, span // 2 + 4, 10 * span):
            assert "num_splits of span rows must cover all rows" in refusal(launcher, span=wrong)
    partial = recorded()["contrast_gradient"].partial
    more = torch.cat([partial] * 9)
    for wrong in ({"span": 0}, {"span": 8}, {"partial": more}, {"span": 64, "partial": partial[:0]}):
        assert "num_splits of span rows must cover all rows" in refusal("contrast_gradient", **wrong)


def test_the_selections_numbers_fit_its_buffer() -> None:
    params = recorded()["buffered"]
    said = "kept, limit and quota must fit"
    assert said in refusal("buffered", limit=params.kept - 1)
    assert said in refusal("buffered", limit=params.buffer.shape[2])
    assert said in refusal("buffered", quota=0)
    assert said in refusal("buffered", kept=0)
    assert said in refusal("buffered", buffer=params.buffer[..., : params.limit + 1].contiguous())
    assert said in refusal("buffered", keys=params.keys[..., : params.kept * params.num_splits - 1].contiguous())


def test_a_first_pass_has_something_to_do() -> None:
    nothing = {"teacher": None, "teacher_scale": None, "statistics": None, "maxima": None}
    assert "there must be statistics or maxima" in refusal("bank_pass", **nothing)
    both = {"teacher": None, "teacher_scale": None, "statistics": recorded()["bank_pass"].statistics[:2]}
    assert "there must be statistics or maxima" in refusal("bank_pass", **both)


@pytest.mark.parametrize(
    ("launcher", "names"),
    [
        ("merge_and_limit", ("sums", "student_lse", "kl", "logit_gap", "maxima", "limits", "found")),
        ("merge_and_limit", ("student_scale", "teacher_scale")),  # for the terms
        ("merge_and_limit", ("query_largest", "longest")),
        ("bank_pass", ("bank_largest", "longest")),
        ("prepare", ("longest", "query_largest", "bank_largest")),
        ("finish_and_collect", ("partial", "raw", "grad", "query", "query_scale", "bank", "counts", "words", "found")),
        ("finish_and_collect", ("similarity", "index")),
        ("buffered", ("arrived", "similarity", "index")),
    ],
)
def test_parts_of_a_launch_are_there_as_a_whole(launcher: str, names: tuple[str, ...]) -> None:
    for name in names:
        assert f"{name} must be" in refusal(launcher, **{name: None})


def test_a_launch_of_several_parts_has_one_of_them() -> None:
    nothing = dict.fromkeys(("sums", "student_lse", "maxima", "limits"))
    assert "there must be sums or maxima" in refusal("merge_and_limit", **nothing)
    nothing = dict.fromkeys(("partial", "grad", "words", "found"))
    assert "there must be partial sums or words" in refusal("finish_and_collect", **nothing)


def test_rows_to_finish_are_those_that_were_multiplied() -> None:
    raw = recorded()["finish_and_collect"].raw
    assert "raw must be bfloat16" in refusal("finish_and_collect", raw=raw.half())
    assert "bank must be bfloat16" in refusal("prepare", bank=recorded()["prepare"].bank.float())


def test_groups_are_whole() -> None:
    for wrong in (0, -1, 3, 1 << 20):
        assert "tiles_of_group must be a power of two" in refusal("bank_pass", tiles_of_group=wrong)
    fewer = recorded()["bank_pass"].maxima[..., :-1].contiguous()
    assert "maxima must be" in refusal("bank_pass", maxima=fewer)
    for wrong in (0, recorded()["merge_and_limit"].maxima.shape[2] + 1):
        assert "k must be positive and no more than there are groups" in refusal("merge_and_limit", k=wrong)


@pytest.mark.parametrize("launcher", ["contrast_gradient", "finish_and_collect", "verdicts"])
def test_words_fit_their_lines(launcher: str) -> None:
    for wrong in (0, -1, recorded()[launcher].words.shape[2] + 1, 1 << 62):
        assert "capacity words of every split must fit a line" in refusal(launcher, capacity=wrong)


def test_verdicts_come_with_the_divergences_gradient_in_the_student() -> None:
    params = recorded()["contrast_gradient"]
    said = "verdicts come with the divergence's gradient in the student"
    partial = params.bank.new_empty((1, *params.bank.shape), dtype=torch.float32)
    assert said in refusal("contrast_gradient", for_bank=True, partial=partial, span=64, counts=params.counts[:1])


@pytest.mark.parametrize("launcher", ["buffered", "finish_and_collect", "prepare"])
def test_places_are_those_of_the_bank(launcher: str) -> None:
    for wrong in ((0, 64), (1, 0), (-2, 64), (2, 1 << 40), (1 << 40, 2), (301, 1), (2, 151)):
        tiles, block = wrong
        said = refusal(launcher, place_tiles=tiles, place_block=block)
        assert "place_tiles tiles of place_block rows must fit the bank" in said


def test_keys_fit_their_lines() -> None:
    for wrong in (0, -1, recorded()["order_keys"].keys.shape[2] + 1):
        assert "count must be positive and fit the keys" in refusal("order_keys", count=wrong)


def test_what_a_block_selects_beside_others_it_can_sort() -> None:
    params = recorded()["buffered"]
    long = {name: torch.nn.functional.pad(getattr(params, name), (0, 4096)) for name in ("similarity", "index")}
    assert "index must have no more places than a block sorts" in refusal("buffered", **long)


def test_a_library_that_was_built_from_other_headers_is_refused() -> None:
    sizes = (ctypes.c_int64 * 5)(1, 1)  # of a tensor and a launcher, before the table
    with pytest.raises(ValueError, match="built from other sources"):
        native.module().launchers_at(ctypes.addressof(sizes))
