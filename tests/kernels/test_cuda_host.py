"""The harness that runs CUDA kernels on the host computes what a GPU computes, and it finds each kind of mistake."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import cuda_host
import numpy as np
import pytest
import torch
from torch import Tensor

CHECKS = Path(cuda_host.__file__).parent / "checks"
ROOT = CHECKS.parents[2]
LAUNCH_FAILURE = 719
LANES = 32

needs_harness = pytest.mark.skipif(cuda_host.missing() is not None, reason=f"host harness: {cuda_host.missing()}")


@pytest.fixture(scope="module")
def library() -> Path:
    return cuda_host.build(sorted(CHECKS.glob("*.cu")))


@pytest.fixture
def harness(library: Path) -> Iterator[cuda_host.Harness]:
    with cuda_host.checked(library) as harness:
        yield harness


def call(harness: cuda_host.Harness, name: str, *arguments: int | Tensor) -> int:
    """A launcher's return value; tensors go as their addresses."""
    passed = [ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else x for x in arguments]
    return getattr(harness.library, name)(*passed)


def run(harness: cuda_host.Harness, name: str, *arguments: int | Tensor) -> None:
    assert call(harness, name, *arguments) == 0, harness.report()


# ------------------------------------------------------------------------------------------------- tensor cores
# The PTX manual's formulas: lane l holds, with g = l >> 2 and t = l & 3, element i at (row, column).


def a_16(g: int, t: int, i: int) -> tuple[int, int]:
    return g + 8 * (i in (2, 3, 6, 7)), 2 * t + (i & 1) + 8 * (i >= 4)


def b_16(g: int, t: int, i: int) -> tuple[int, int]:
    return 2 * t + (i & 1) + 8 * (i >= 2), g


def a_tf32(g: int, t: int, i: int) -> tuple[int, int]:
    return g + 8 * (i & 1), t + 4 * (i >= 2)


def b_tf32(g: int, t: int, i: int) -> tuple[int, int]:
    return t + 4 * i, g


def accumulator(g: int, t: int, i: int) -> tuple[int, int]:
    return g + 8 * (i >= 2), 2 * t + (i & 1)


def fragments(matrix: Tensor, place: Callable[[int, int, int], tuple[int, int]], count: int) -> Tensor:
    """What each lane holds: [32, count]."""
    cells = [[matrix[place(lane >> 2, lane & 3, i)] for i in range(count)] for lane in range(LANES)]
    return torch.stack([torch.stack(row) for row in cells])


@needs_harness
@pytest.mark.parametrize(
    ("kind", "dtype", "depth"), [(0, torch.float16, 16), (1, torch.bfloat16, 16), (2, torch.float32, 8)]
)
def test_fragment_layouts(harness: cuda_host.Harness, kind: int, dtype: torch.dtype, depth: int) -> None:
    a, b, c = torch.randn(16, depth).to(dtype), torch.randn(depth, 8).to(dtype), torch.randn(16, 8)
    place_a, place_b = (a_16, b_16) if depth == 16 else (a_tf32, b_tf32)
    if kind == 2:  # ten bits of mantissa, so that the products see everything
        a, b = ((x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (a, b))
    expected = c.double() + a.double() @ b.double()
    result = fragments(c, accumulator, 4).contiguous()
    left, right = fragments(a, place_a, depth // 2), fragments(b, place_b, depth // 4)
    run(harness, "check_multiply", kind, left.contiguous(), right.contiguous(), result)
    assert torch.equal(result, fragments(expected.float(), accumulator, 4))


@needs_harness
def test_tf32_does_not_read_the_low_bits(harness: cuda_host.Harness) -> None:
    a, b, c = torch.randn(LANES, 4), torch.randn(LANES, 2), torch.zeros(LANES, 4)
    exact, cut = c.clone(), c.clone()
    run(harness, "check_multiply", 2, a, b, exact)
    run(harness, "check_multiply", 2, *[(x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (a, b)], cut)
    assert torch.equal(exact, cut) and exact.abs().sum() > 0


@needs_harness
@pytest.mark.parametrize("transpose", [False, True])
def test_ldmatrix(harness: cuda_host.Harness, transpose: bool) -> None:
    values = torch.arange(256, dtype=torch.int16).view(4, 8, 8)
    registers = torch.empty(LANES, 4, dtype=torch.int32)
    run(harness, "check_load_matrices", int(transpose), values, registers)
    pairs = registers.view(torch.int16).view(LANES, 4, 2)
    for lane in range(LANES):
        row, column = lane >> 2, 2 * (lane & 3)
        for matrix in range(4):
            source = values[matrix].T if transpose else values[matrix]
            assert pairs[lane, matrix].tolist() == source[row, column : column + 2].tolist()


@needs_harness
def test_round_to_tf32(harness: cuda_host.Harness) -> None:
    ties = torch.tensor([1 + 2**-11, -1 - 2**-11, 1 + 3 * 2**-11, 2 - 2**-12, 3.4e38, float("inf"), -float("inf")])
    x = torch.cat([torch.randn(500) * 10.0 ** torch.randint(-30, 30, (500,)), ties])
    bits = torch.empty(len(x), dtype=torch.int32)
    run(harness, "check_round", x, bits, len(x))
    mantissa, exponent = np.frexp(x.numpy().astype(np.float64))  # |mantissa| in [0.5, 1): 11 bits, ties away from zero
    nearest = np.sign(mantissa) * np.floor(np.abs(mantissa) * 2**11 + 0.5) / 2**11
    with np.errstate(over="ignore"):
        expected = np.ldexp(nearest, exponent).astype(np.float32)
    assert np.array_equal(bits.view(torch.float32).numpy(), expected)


# ------------------------------------------------------------------------------------------------------ threads


@needs_harness
@pytest.mark.parametrize("threads", [32, 96])
def test_warp_operations(harness: cuda_host.Harness, threads: int) -> None:
    values = torch.randint(0, 40, (threads,), dtype=torch.int32)
    out = torch.empty(threads, 14, dtype=torch.int32)
    run(harness, "check_warp_operations", values, out, threads)
    for first in range(0, threads, LANES):
        v = values[first : first + LANES].tolist()

        def mask(hits: Iterator[bool]) -> int:
            return sum(1 << i for i, hit in enumerate(hits) if hit)

        for lane in range(LANES):
            either = 0
            for x in v:
                either |= x
            expected = [
                v[7],
                v[lane // 8 * 8 + (lane + 3) % 8],
                v[lane - 5] if lane >= 5 else v[lane],
                v[lane + 2] if lane % 16 < 14 else v[lane],
                v[lane ^ 9],
                mask(x % 2 == 1 for x in v),
                int(3 in v),
                1,
                mask(x == v[lane] for x in v),
                sum(v),
                min(v),
                max(v),
                either,
                v[lane ^ 1] * (3 if lane < 16 else 5),
            ]
            assert [x & 0xFFFFFFFF for x in out[first + lane].tolist()] == expected


@needs_harness
def test_sum_over_warps_and_atomics(harness: cuda_host.Harness) -> None:
    n, threads = 1000, 160
    values = torch.randint(0, 5000, (n,)).float()
    blocks = -(-n // threads)
    total, largest, count = torch.empty(blocks), torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    run(harness, "check_block_sum", values, n, total, largest, count, threads)
    assert torch.equal(total, torch.stack([x.sum() for x in values.split(threads)]))
    assert largest.item() == values.max() and count.item() == n


@needs_harness
def test_conversions(harness: cuda_host.Harness) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)  # all bit patterns
    wide = [torch.empty(len(every)) for _ in range(2)]
    run(harness, "check_widen", every, len(every), *wide)
    halves, bfloats = every.view(torch.float16).float(), every.view(torch.bfloat16).float()
    for ours, torchs in zip(wide, (halves, bfloats), strict=True):
        assert torch.equal(ours.nan_to_num(nan=0.5), torchs.nan_to_num(nan=0.5))

    # Every float16 and bfloat16, what lies halfway between neighbours and next to that, and arbitrary bits.
    finite = torch.cat([x[x.isfinite()] for x in (halves, bfloats)]).sort().values
    middle = finite[:-1] / 2 + finite[1:] / 2
    arbitrary = torch.randint(-(2**31), 2**31 - 1, (50000,)).to(torch.int32).view(torch.float32)
    infinity = torch.tensor(float("inf"))
    near = [middle, torch.nextafter(middle, infinity), torch.nextafter(middle, -infinity)]
    x = torch.cat([finite, *near, arbitrary, infinity[None], -infinity[None]])
    narrow = [torch.empty(len(x), dtype=torch.int16) for _ in range(2)]
    run(harness, "check_convert", x, len(x), *narrow)
    for ours, dtype in zip(narrow, (torch.float16, torch.bfloat16), strict=True):
        expected = x.to(dtype)
        assert torch.equal(ours.view(dtype).isnan(), expected.isnan())
        number = ~expected.isnan()
        assert torch.equal(ours[number], expected.view(torch.int16)[number])


@needs_harness
def test_bits(harness: cuda_host.Harness) -> None:
    numbers = [0, 1, 2**31, 2**32 - 1, 0x12345678, *torch.randint(0, 2**32, (200,)).tolist()]
    x = torch.tensor(numbers).to(torch.int32)
    out = torch.empty(len(numbers), 5, dtype=torch.int32)
    run(harness, "check_bits", x, len(numbers), out)
    for number, row in zip(numbers, out.tolist(), strict=True):
        digits = f"{number:032b}"
        lowest = len(digits) - digits.rindex("1") if number else 0
        reverse, product = int(digits[::-1], 2), number * 0xD2511F53 >> 32
        expected = [digits.count("1"), lowest, 32 - number.bit_length(), reverse, product]
        assert [y & 0xFFFFFFFF for y in row] == expected


# ------------------------------------------------------------------------------------------------------- faults

FAULTS = {
    "exit_before_barrier": r"deadlock: .*__syncthreads at faults.cu:\d+.*thread \(5, 0, 0\) has exited",
    "other_barrier": r"divergent barrier: __syncthreads at faults.cu:\d+ while thread \(0, 0, 0\) waits",
    "lane_never_comes": r"deadlock: thread \(32, 0, 0\) waits in __shfl_xor_sync.*thread \(37, 0, 0\) has exited",
    "caller_not_in_mask": r"__syncwarp at faults.cu:\d+: the caller is not in its mask 0x0000ffff(.|\n)*\(16, 0, 0\)",
    "source_not_in_mask": r"lane 0 asks for the value of lane 16, which is not in the mask 0x0000ffff",
    "masks_differ": r"warp operations differ: __shfl_sync .* with mask 0x7fffffff",
    "shared_too_far": r"shared memory out of bounds: write of 4 bytes at offset 256 of 256(.|\n)*thread \(63, 0, 0\)",
    "shared_before": r"shared memory out of bounds: write of 4 bytes at offset -4 of 256(.|\n)*thread \(0, 0, 0\)",
    "shared_array_index": r"array index 8 out of bounds at faults.cu",
    "global_too_far": r"global memory out of bounds: read of 4 bytes.*256 bytes and ends 0 bytes before(.|\n)*\(63, 0",
    "global_before": r"global memory out of bounds: write of 4 bytes.*begins 4 bytes after(.|\n)*thread \(0, 0, 0\)",
    "copy_too_far": r"global memory out of bounds: read of 16 bytes(.|\n)*thread \(15, 0, 0\)",
    "misaligned": r"misaligned address: .* is not a multiple of 16, at faults.cu",
    "uninitialised_dynamic": r"read of uninitialised shared memory, at offset 36 of dynamic(.|\n)*\(9, 0, 0\)",
    "uninitialised_static": r"read of uninitialised shared memory, at offset \d+ of static",
    "uninitialised_ldmatrix": r"read of uninitialised shared memory(.|\n)*thread \(15, 0, 0\)",
    "no_wait": r"read before the wait for its asynchronous copy, issued by thread \(0, 0, 0\)",
    "wait_for_too_few": r"read before the wait for its asynchronous copy",
    "not_committed": r"read before the wait for its asynchronous copy",
    "no_barrier_after_wait": r"race: a read after a write by thread \(3[2-9], 0, 0\) without a barrier|before the wait",
    "read_after_write": r"race: a read after a write by thread \(31, 0, 0\) without a barrier(.|\n)*\(63, 0, 0\)",
    "write_after_read": r"race: a write after a read by thread",
    "write_after_other_lane_read": r"race: a write after a read by thread",
    "write_after_other_warp_read": r"race: a write after a read by thread",
    "copy_after_read": r"race: a write after a read by thread",
    "write_after_write": r"race: a write after a write by thread \(0, 0, 0\)(.|\n)*thread \(1, 0, 0\)",
    "no_syncwarp": r"race: a read after a write by thread",
    "atomic_and_plain": r"race: a (read after a write|write after a read) by thread",
    "global_read_after_write": r"global memory race: a (read after a write|write after a read) by thread",
    "global_write_after_read": r"global memory race: a write after a read by thread",
    "global_write_by_two": r"global memory race: a write after a write by thread .* at offset 0 of its tensor",
    "overflow": r"signed product overflows at faults.cu",
}


def fault_names(harness: cuda_host.Harness) -> list[str]:
    harness.library.check_fault_name.restype = ctypes.c_char_p
    names: list[str] = []
    while (found := harness.library.check_fault_name(len(names))) is not None:
        names.append(found.decode())
    return names


@needs_harness
@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(harness: cuda_host.Harness, name: str) -> None:
    names = fault_names(harness)
    assert sorted(names) == sorted(FAULTS)
    number = names.index(name)

    values, out = torch.randn(64), torch.empty(64)
    run(harness, "check_fault", number, 0, values, out)
    assert call(harness, "check_fault", number, 1, values, out) == LAUNCH_FAILURE
    report = harness.report()
    assert re.search(FAULTS[name], report), report
    assert re.search(rf"in kernel .*\b{name}\b.*, block \(0, 0, 0\)", report), report
    run(harness, "check_fault", number, 0, values, out)  # nothing of it is left


@needs_harness
def test_blocks_that_write_the_same_memory(harness: cuda_host.Harness) -> None:
    values, total = torch.randint(0, 100, (9,)).float(), torch.zeros(1)
    run(harness, "check_blocks_together", 0, values, total, len(values))
    assert total.item() == values.sum()
    assert call(harness, "check_blocks_together", 1, values, total, len(values)) == LAUNCH_FAILURE
    assert re.search(r"global memory race: .* thread \(0, 0, 0\) of an earlier block", harness.report())


@needs_harness
def test_fresh_memory_shows(harness: cuda_host.Harness) -> None:
    assert torch.empty(5).isnan().all()
    assert (torch.empty(5, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()


@needs_harness
def test_shared_memory_limit(harness: cuda_host.Harness) -> None:
    limit = 232448
    assert call(harness, "check_shared_bytes", limit + 1) not in (0, LAUNCH_FAILURE)  # refused, not run
    assert call(harness, "check_shared_bytes", limit) == LAUNCH_FAILURE  # run: its pointers are null
    assert "global memory out of bounds" in harness.report()


@needs_harness
def test_views_have_bounds_of_their_own(harness: cuda_host.Harness) -> None:
    values, out = torch.randn(200), torch.empty(64)
    number = fault_names(harness).index("global_too_far")
    run(harness, "check_fault", number, 1, values[:65], out)
    harness.forget(strict=True)
    assert call(harness, "check_fault", number, 1, values[100:164], out) == LAUNCH_FAILURE
    run(harness, "check_fault", number, 1, values, out)


# ---------------------------------------------------------------------------------------------------- on a GPU


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if not found:
        pytest.skip("no nvcc")
    return found


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_wrappers_compile_for_gpus(nvcc: str, arch: str, tmp_path: Path) -> None:
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    if arch not in known:
        pytest.skip(f"this nvcc does not know {arch}")
    for source in ("fragments", "threads"):
        command = [nvcc, "-std=c++17", f"-arch={arch}", "-cubin", f"-I{ROOT}/csrc/cuda", "-o", tmp_path / source]
        result = subprocess.run([*command, CHECKS / f"{source}.cu"], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    code = machine_code(tmp_path / "fragments")
    for instruction in ("HMMA.16816.F32 ", "HMMA.16816.F32.BF16", "HMMA.1688.F32.TF32", "LDSM.16.M88.4", "LDGSTS"):
        assert instruction in code
    assert re.search(r"LDSM\.16\.MT88\.4", code)


def machine_code(binary: Path) -> str:
    """By whichever disassembler is here: CUDA's, or the ones that come with Triton."""
    folders: list[Path] = []
    try:
        import triton

        folders.append(Path(triton.__file__).parent / "backends/nvidia/bin")
    except ImportError:
        pass
    for name, options in (("cuobjdump", ["--dump-sass"]), ("nvdisasm", ["-c"])):
        for tool in [shutil.which(name), *[folder / name for folder in folders if (folder / name).exists()]]:
            result = tool and subprocess.run([tool, *options, binary], capture_output=True, text=True)
            if result and result.returncode == 0 and result.stdout.strip():
                return result.stdout
    pytest.skip("no disassembler")
