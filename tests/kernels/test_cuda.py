"""What only the CUDA backend does: a missing library, tf32, wide rows, merged splits, selection under pressure, graphs.

Without a GPU its kernels run compiled for the CPU, where every access of theirs is checked.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import cuda_host
import formulas
import pytest
import torch
from cuda_calls import front, kept_workspaces, launches
from formulas import neighbours
from kernel_functions import operator_file
from torch import Tensor

import action_kernels
from action_kernels import action_contrast, contrastive_distillation, hard_negatives, use_backend
from action_kernels.backends.thresholds import AS_THEY_ARE, Placement

HOST = os.environ.get("ACTION_CUDA_HOST")
DEVICE = "cpu" if HOST else "cuda"
ROOT = Path(__file__).parents[2]
STEPS = "prepare", "merge_and_limit"  # of csrc/cuda

pytestmark = [pytest.mark.skipif(action_kernels.list_backends()["cuda"] != "ready", reason="no CUDA kernels")]
pytestmark += [pytest.mark.gpu] * (not HOST)


@pytest.fixture
def kernels() -> Iterator[None]:
    """The CUDA backend in force, its memory accesses checked where that is possible."""
    with cuda_host.checked(HOST) if HOST else nullcontext(), use_backend("cuda"):
        yield


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


# -------------------------------------------------------------------------------------------------- availability


def state(**environment: str) -> str:
    """What the report of another process says of the backend."""
    rest = {name: value for name, value in os.environ.items() if name != "ACTION_CUDA_HOST"}
    command = [sys.executable, "-m", "action_kernels"]
    out = subprocess.run(command, env=rest | environment, capture_output=True, text=True, check=True).stdout
    return next(x for x in out.splitlines() if x.split()[:2] == ["backend", "cuda"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_reason_is_reported() -> None:
    assert "PyTorch finds no CUDA device" in state()


def test_a_library_that_is_not_there_or_not_one_is_reported(tmp_path: Path) -> None:
    missing = tmp_path / "missing.so"
    assert f"the kernels were not built: {missing} does not exist" in state(ACTION_CUDA_HOST=str(missing))
    broken = tmp_path / "broken.so"
    broken.write_text("no library")
    assert "the kernels do not load:" in state(ACTION_CUDA_HOST=str(broken))


def test_only_takes_its_own_device_and_is_no_automatic_choice_on_the_cpu() -> None:
    from action_kernels.backends import cuda, select

    other = "cuda" if HOST else "cpu"
    assert cuda.supports(DEVICE, (torch.bfloat16,)) is None
    assert other in cuda.supports(other, (torch.bfloat16,))
    assert "float64" in cuda.supports(DEVICE, (torch.float64,))
    with use_backend(None):
        assert select("cpu", (torch.bfloat16,) * 3) is not cuda


@pytest.mark.skipif(not HOST, reason="a GPU would not notice")
def test_a_failed_launch_names_its_kernel(kernels: None) -> None:
    labels = torch.zeros(1, 3, dtype=torch.int64)
    thresholds, wrong_start = torch.full((1, 2, 2), 9), torch.tensor([[0, 50, 90]])
    with pytest.raises(RuntimeError, match="relation_negatives: .*out of bounds"):
        operator_file("cuda", "relation_negatives").relation_negatives(
            labels, thresholds, wrong_start, torch.arange(2).unsqueeze(0), 5, 0
        )


# ---------------------------------------------------------------------------------------------------------- tiles


def results(rows: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """Divergences and their gradients in student and bank."""
    student, teacher, bank = (x.to(DEVICE) for x in rows)
    return formulas.differentiate(
        lambda s, b: contrastive_distillation(s, teacher, b, teacher_temp=0.05, reduction="none"),
        (student, bank),
        upstream,
    )


# Features: one chunk of a row, two, more with the queries kept in shared memory, and without.
@pytest.mark.parametrize("features", [24, 60, 130, 400])
def test_tf32_products(kernels: None, tf32: None, features: int) -> None:
    rows = neighbours(70, 150, features)
    upstream = torch.randn(70)
    ours = results(rows, upstream)
    truth = formulas.differentiate(
        lambda s, b: formulas.distillation(s, rows[1].double(), b, teacher_temp=0.05),
        (rows[0].double(), rows[2].double()),
        upstream,
    )
    # A rounding to 11 bits of both factors of every product, divided by the temperature.
    worst = [max(formulas.errors(x, y)) for x, y in zip(ours, truth, strict=True)]
    assert max(worst) < 10 * 2.0**-11
    assert max(worst) > 2.0**-18  # those of exact products would be far smaller


@pytest.mark.parametrize("features", [24, 400])
def test_tf32_selection_is_exact_where_tf32_is(kernels: None, tf32: None, features: int) -> None:
    query, bank = torch.randint(-2, 3, (70, features)).float(), torch.randint(-2, 3, (300, features)).float()
    similarity, index = hard_negatives(query.to(DEVICE), bank.to(DEVICE), 20, normalize=False)
    exact = (query @ bank.T).double()
    expected = torch.tensor(formulas.selection(exact, 20))
    assert torch.equal(index.cpu(), expected)
    assert torch.equal(similarity.cpu().double(), exact.gather(1, expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("features", [300, 450])
def test_wide_rows(kernels: None, features: int, dtype: torch.dtype) -> None:
    """Rows in several chunks and gradients in several blocks of columns, at every place of the last one."""
    rows = [x.to(dtype) for x in neighbours(20, 70, features)]
    upstream = torch.randn(20)
    ours = results(rows, upstream)
    truth = formulas.differentiate(
        lambda s, b: formulas.distillation(s, rows[1].double(), b, teacher_temp=0.05),
        (rows[0].double(), rows[2].double()),
        upstream,
    )
    last = 2e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    for x, y, tolerance in zip(ours, truth, (2e-5, last, last), strict=True):
        assert max(formulas.errors(x, y)) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_selection_beside_a_gradient_whose_columns_blocks_share(kernels: None, dtype: torch.dtype) -> None:
    """One of them takes the verdicts; what is selected is what a pass of their own selects."""
    query, bank = (torch.randint(-2, 3, (n, 300)).to(dtype) for n in (70, 700))
    labels = torch.randint(3, (70,)), torch.randint(-1, 3, (700,))
    student = query.to(DEVICE, copy=True).requires_grad_()
    expected = torch.tensor(formulas.selection(query.double() @ bank.double().T, 20, *labels))
    for rows, verdicts in ((student, False), (student.detach(), True)):
        _, _, index = action_contrast(
            rows,
            query.to(DEVICE),
            bank.to(DEVICE),
            20,
            student_temp=300.0,
            teacher_temp=150.0,
            query_labels=labels[0].to(DEVICE),
            bank_labels=labels[1].to(DEVICE),
            normalize=False,
        )
        assert ("verdicts" in launches()) == verdicts
        assert torch.equal(index.cpu(), expected)


def test_more_work_than_blocks(kernels: None) -> None:
    """Blocks that walk through several queries' tiles start each selection and each sum afresh."""
    student, teacher, bank = (x.to(DEVICE) for x in neighbours(3, 70, 16, groups=40))
    many = action_contrast(student, teacher, bank, 5, reduction="none")
    for g in (0, 17, 39):
        one = action_contrast(student[g], teacher[g], bank[g], 5, reduction="none")
        for x, y in zip(many, one, strict=True):
            assert torch.equal(x[g], y)


# ------------------------------------------------------------------------------------------------------ selection


@pytest.mark.parametrize("order", ["rising", "falling", "all equal"])
@pytest.mark.parametrize("k", [1, 40, 130])
def test_selection_whose_buffer_fills(kernels: None, order: str, k: int) -> None:
    """In rising order every row of the bank beats all before it; equal ones must all be turned away.

    Labels beyond float32's whole numbers leave the queries to the buffer where k does not.
    """
    m = 1500
    position = {"rising": torch.arange(m), "falling": torch.arange(m).flip(0), "all equal": torch.zeros(m)}[order]
    bank = torch.stack([position.float() - 700, torch.ones(m)], dim=-1).to(DEVICE)
    query = torch.tensor([[1.0, 0.0], [2.0, 5.0], [-1.0, 0.0]], device=DEVICE)
    labels = torch.full((3,), 2**24 + 1).to(DEVICE), torch.zeros(m, dtype=torch.int64).to(DEVICE)
    similarity, index = hard_negatives(query, bank, k, query_labels=labels[0], bank_labels=labels[1], normalize=False)
    assert "buffered" in launches()
    exact = (query.double() @ bank.double().T).cpu()
    expected = torch.tensor(formulas.selection(exact, k))
    assert torch.equal(index.cpu(), expected)
    assert torch.equal(similarity.cpu().double(), exact.gather(1, expected))


@pytest.fixture
def twice() -> Iterator[None]:
    """The buffer's kernel is launched twice, without a GPU."""
    repeat = ctypes.CDLL(HOST).cuda_host_repeat if HOST else lambda name: None
    repeat(b"buffered")
    yield
    repeat(b"")


@pytest.mark.parametrize("k", [100, 130, 200])
@pytest.mark.parametrize("values", ["ties", "all equal", "zeros of both signs"])
def test_splits_of_a_bank_that_know_of_each_other(
    kernels: None, twice: None, monkeypatch: pytest.MonkeyPatch, values: str, k: int
) -> None:
    """Launched twice, every split begins with what all have found, as if the others had been there first."""
    workspaces = kept_workspaces(monkeypatch)
    m, classes, splits = 1500, 3, 8
    bank = {
        "ties": torch.randint(-6, 7, (m, 1)).float(),
        "all equal": torch.full((m, 1), 2.0),
        "zeros of both signs": torch.where(torch.rand(m, 1) < 0.5, 1e-30, -1e-30),  # after underflow
    }[values]
    query = torch.full((3, 1), 1e-30 if values.startswith("zeros") else 1.0)
    labels = torch.randint(classes, (3,)), torch.randint(-1, classes, (m,))
    _, index = hard_negatives(
        *(x.to(DEVICE) for x in (query, bank)),
        k,
        normalize=False,
        query_labels=labels[0].to(DEVICE),
        bank_labels=labels[1].to(DEVICE),
    )
    exact = (query @ bank.T).double()
    assert torch.equal(index.cpu(), torch.tensor(formulas.selection(exact, k, *labels)))
    assert launches() == ["prepare", "buffered", "order"]
    if HOST:  # a GPU is large enough for splits that are too short for a floor
        assert (front(workspaces[-1], 3 * splits) > -(2**31)).all()


@pytest.fixture(scope="module")
def steps() -> Iterator[cuda_host.Harness]:
    """Single steps, as functions of a library of their own."""
    if cuda_host.missing():
        pytest.skip(f"host harness: {cuda_host.missing()}")
    sources = [*(ROOT / "tests/cuda_host/steps").glob("*.cu"), *(ROOT / "csrc/cuda" / f"{x}.cu" for x in STEPS)]
    with cuda_host.checked(library := cuda_host.build(sources)):
        yield cuda_host.Harness(library)


def step(steps: cuda_host.Harness, name: str, *arguments: int | Tensor) -> None:
    passed = [ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else x for x in arguments]
    assert getattr(steps.library, name)(*passed) == 0, steps.report()


def placed(rows: Tensor, placement: Placement) -> Tensor:
    """Rows [G, M, D] in the order in which the kernels keep them."""
    dealt = placement.tiles * placement.block
    first = rows[:, :dealt].unflatten(1, (placement.block, placement.tiles)).transpose(1, 2).flatten(1, 2)
    return torch.cat([first, rows[:, dealt:]], 1)


@pytest.mark.parametrize("placement", [AS_THEY_ARE, Placement(3, 64), Placement(2, 128)])
def test_placed_rows(steps: cuda_host.Harness, placement: Placement) -> None:
    """Neighbours come into different tiles; rows behind the last whole tile stay, and so does what a row is."""
    groups, rows, features, padded = 2, 270, 24, 320
    bank, labels = torch.randn(groups, rows, features), torch.randint(-1, 9, (groups, rows))
    labels[:, ::5] += 1 << 24

    def kept(placement: Placement) -> tuple[Tensor, Tensor, Tensor]:
        data, (scale, narrow) = torch.empty(groups, rows, features), torch.empty(2, groups, padded)
        sizes = groups, rows, features, placement.tiles, placement.block
        step(steps, "check_placed_rows", bank, labels, *sizes, data, features, scale, padded, narrow)
        return data, scale[:, :rows, None], narrow[:, :rows, None]

    plain, dealt = kept(AS_THEY_ARE), kept(placement)
    for x, y in zip(dealt, plain, strict=True):
        torch.testing.assert_close(x, placed(y, placement), rtol=0, atol=0, equal_nan=True)
    lengths = bank.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(plain[0] * plain[1], bank / lengths, rtol=1e-6, atol=1e-6)
    narrow = torch.where(labels < 0, torch.nan, torch.where(labels > 1 << 24, torch.inf, labels.float()))
    torch.testing.assert_close(plain[2][..., 0], narrow, rtol=0, atol=0, equal_nan=True)


def test_limits_leave_k_groups(steps: cuda_host.Harness) -> None:
    """The k-th largest maximum, or one that few more groups reach, less the bound; with more than registers hold."""
    for groups in (40, 700):
        maxima = torch.randn(9, groups)
        maxima[3, 7:] = torch.finfo(torch.float32).min  # fewer than k eligible groups
        maxima[4] = 0.5
        best = maxima.sort(descending=True).values
        limits, found = torch.empty(9), torch.empty(9, dtype=torch.int32)
        labels = torch.zeros(9, dtype=torch.int64)
        labels[5], labels[6] = 2**24, 2**24 + 1
        step(steps, "check_limits", maxima, labels, 9, groups, 32, 10, limits, found)
        enough = torch.tensor([0, 1, 2, 4, 5, 7, 8])
        assert found.tolist() == [-1 if i == 6 else 0 for i in range(9)] and limits[6] == torch.inf
        assert (limits[enough] <= best[enough, 31] - 2.0**-9 + 1e-6).all()
        assert (limits[enough] >= best[enough, 34] - 2.0**-9 - 1e-6).all()
        assert -3.41e38 < limits[3].item() < -3.39e38


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_similarities_are_rounded_once(kernels: None, dtype: torch.dtype) -> None:
    """Whichever the tile of its row and its place among the queries: the sum in float64, rounded to float32."""
    query, bank = torch.randn(70, 100).to(dtype), torch.randn(3000, 100).to(dtype)
    similarity, index = (x.cpu() for x in hard_negatives(query.to(DEVICE), bank.to(DEVICE), 20, normalize=False))
    exact = (query.double().unsqueeze(1) * bank.double()[index]).sum(-1).float()
    torch.testing.assert_close(similarity, exact, rtol=1e-9, atol=0)
    again, where = hard_negatives(query[7:20].to(DEVICE), bank.to(DEVICE), 20, normalize=False)
    assert torch.equal(again.cpu(), similarity[7:20]) and torch.equal(where.cpu(), index[7:20])


@pytest.mark.parametrize("k", [40, 500])
def test_flagged_queries_among_others_with_splits(kernels: None, k: int) -> None:
    """Whose candidates from all splits are more than a block sorts at once."""
    m = 20000
    bank = torch.stack([torch.randn(m), torch.arange(m) % 2.0], -1)  # a plateau for whom the second column is all
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    _, index = hard_negatives(query.to(DEVICE), bank.to(DEVICE), k, normalize=False)
    expected = torch.tensor(formulas.selection(query.double() @ bank.double().T, k))
    assert torch.equal(index.cpu(), expected)


@pytest.mark.parametrize("k", [4096, 4097, 5000])
def test_more_than_a_block_sorts(kernels: None, k: int) -> None:
    query, bank = torch.randn(2, 3), torch.randn(4500, 3)
    similarity, index = hard_negatives(query.to(DEVICE), bank.to(DEVICE), k)
    exact = formulas.similarities(query.double(), bank.double()).sort(descending=True).values
    kept = min(k, 4500)
    torch.testing.assert_close(similarity[:, :kept].double().cpu(), exact[:, :kept], rtol=0, atol=5e-7)
    assert (index[:, kept:] == -1).all() and (similarity[:, kept:] == -torch.inf).all()
    assert all(len(set(row[:kept].tolist())) == kept for row in index)


def test_similarities_of_any_size(kernels: None) -> None:
    """The selection needs no smallest number of its own."""
    query = torch.tensor([[1e19, 0.0]], device=DEVICE)
    bank = torch.tensor([[-1e19, 0.0], [-3e18, 0.0], [torch.inf, 0.0], [1e19, 0.0]], device=DEVICE)
    similarity, index = hard_negatives(query, bank, 4, normalize=False)
    # inf * 1e19 + 0 * 0 is infinite, and the largest.
    assert index.tolist() == [[2, 3, 1, 0]]
    assert similarity[0, 3] < -9e37


def test_zeros_of_both_signs_are_a_tie(kernels: None) -> None:
    query = torch.tensor([[1.0, 0.0]], device=DEVICE)
    bank = torch.tensor([[-0.0, 1.0], [0.0, 1.0], [-0.0, -1.0], [-1.0, 0.0]], device=DEVICE)
    _, index = hard_negatives(query, bank, 4, normalize=False)
    assert index.tolist() == [[0, 1, 2, 3]]


# ---------------------------------------------------------------------------------------------------------- range


@pytest.mark.parametrize("size", [1e-4, 200.0])
def test_float16_rows_of_any_length(kernels: None, size: float) -> None:
    """Lengths and upstream gradients at which float16 products or weights would leave its range."""
    rows = [(x * size).half() for x in neighbours(20, 150, 12)]
    upstream = torch.randn(20) * 1e6
    backend_rows = [x.unsqueeze(0).to(DEVICE) for x in rows]
    ops = torch.ops.action_kernels
    kl, kept, student_grad, _, _ = ops.action_contrast(*backend_rows, 0, 0.1, 0.01, None, None, True, True, True)
    grad_bank = ops.action_contrast_bank_gradient(
        upstream.unsqueeze(0).to(DEVICE), *backend_rows, kept, 0.1, 0.01, True, "cuda"
    )
    student, teacher, bank = (x.double() for x in rows)
    truth = formulas.differentiate(lambda s, b: formulas.distillation(s, teacher, b), (student, bank), upstream)
    torch.testing.assert_close(kl[0].double().cpu(), truth[0], rtol=2e-5, atol=2e-5)
    grad_student = student_grad[0].double().cpu() * upstream.double().unsqueeze(-1)
    for result, expected in ((grad_student, truth[1]), (grad_bank[0].double().cpu(), truth[2])):
        assert max(formulas.errors(result, expected)) < 2e-5


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_float32_rows_whose_squares_leave_the_range(kernels: None, size: float) -> None:
    query, positive, bank = (x.to(DEVICE) for x in neighbours(9, 40, 12))
    index = torch.randint(-1, 40, (9, 7), device=DEVICE)
    for function in (
        lambda b: action_kernels.anatomical_contrast(query, positive, b, index, reduction="none"),
        lambda b: contrastive_distillation(query, positive, b, reduction="none"),
    ):
        if size > 1:
            torch.testing.assert_close(function(bank * size), function(bank), rtol=1e-5, atol=1e-5)
        else:  # below 1e-12 a norm counts as that, so that all similarities are nearly zero
            torch.testing.assert_close(function(bank * size), function(bank * 0.0), rtol=1e-5, atol=1e-5)


def test_offsets_beyond_32_bits() -> None:
    """Bank rows 2**30 elements apart; the memory between them is never touched."""
    m, d = 5, 8
    memory = torch.empty(4 * 2**30 + d, dtype=torch.float16, device=DEVICE)
    bank = memory.as_strided((m, d), (2**30, 1))
    query, _, rows = (x.half().to(DEVICE) for x in neighbours(3, m, d))
    bank.copy_(rows)
    index = torch.tensor([[4, 0, 2], [1, 3, 4], [4, 4, -1]], device=DEVICE)
    with use_backend("cuda"):
        for function in (
            lambda b: contrastive_distillation(query, query, b, teacher_temp=0.05, reduction="none"),
            lambda b: hard_negatives(query, b, 5)[0],
            lambda b: action_kernels.anatomical_contrast(query, query, b, index, reduction="none"),
        ):
            assert torch.equal(function(bank), function(rows))
