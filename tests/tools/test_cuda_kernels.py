"""The reading of the CUDA kernels' machine code, on dumps written for the purpose; the library, where it was built."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil

import pytest

from tools.machine_code.chips import A100, CHIPS
from tools.machine_code.cuda_kernels import LIBRARY, STREAMING, Kernel, code_in, kernels, readable, usage_in
from tools.machine_code.executed import BUDGETS, Tiles, for_a_pair

USAGE = """
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:4
 Function _Z4scanv:
  REG:243 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:568 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z5orderv:
  REG:32 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:400 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90

Resource usage:
 Function _Z4scanv:
  REG:255 STACK:0 SHARED:16 LOCAL:0 CONSTANT[0]:568 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
CODE = """
\tcode for sm_80
\t\tFunction : _Z5other
\t.headerflags\t@"EF_CUDA_SM80"
        /*0000*/                   MOV R1, c[0x0][0x28] ;       /* 0x00000a0000017a02 */
                                                                /* 0x000fe20000000f00 */
arch = sm_90
\t\tFunction : _Z4scanv
        /*0000*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*0010*/              @!P1 STL.64 [R1], R2 ;
        /*0020*/                   LDGSTS.E.BYPASS.128 [R5], [R6.64] ;
"""


def kernel(*sass: str, name: str = "bank_pass<Bfloat, 2, false>") -> Kernel:
    return Kernel("sm_80", name, 200, 0, sass)


def test_usage_and_code_are_found_by_architecture_and_symbol() -> None:
    usage = usage_in(USAGE)
    assert usage == {
        ("sm_80", "_Z4scanv"): (243, 1024),
        ("sm_80", "_Z5orderv"): (32, 0),
        ("sm_90", "_Z4scanv"): (255, 16),
    }
    code = code_in(CODE)
    assert [len(lines) for lines in code.values()] == [1, 3]
    found = Kernel("sm_90", "bank_pass<Bfloat, 2, true>", 255, 16, tuple(code["sm_90", "_Z4scanv"]))
    assert found.spills == 1
    assert found.instructions == {"HMMA.16816.F32.BF16": 1, "LDGSTS.E.BYPASS.128": 1}


def test_faults() -> None:
    product, spill = "/*0000*/ HMMA.16816.F32 R4, R8, R10, R4 ;", "/*0010*/ LDL R2, [R1] ;"
    assert kernel(product).faults(A100, 100_000) == []
    assert kernel(product, spill).faults(A100, 0) == ["spills"]
    assert kernel(product).faults(A100, A100.shared) == ["too much shared memory"]
    assert kernel("/*0000*/ FFMA R1, R2, R3, R4 ;").faults(A100, 0) == ["no tensor-core instructions"]
    assert kernel("/*0000*/ HFMA2.MMA R1, -RZ, RZ, 0, 0 ;").faults(A100, 0) == ["no tensor-core instructions"]
    for name in ("student_grad<Exact, true, true, 2>", "info_nce<float>", "merge"):
        assert kernel("/*0000*/ FFMA R1, R2, R3, R4 ;", name=name).faults(A100, 0) == []


@pytest.mark.skipif(not shutil.which("c++filt"), reason="no c++filt")
def test_names_are_those_of_the_source() -> None:
    symbol = "_ZN6action52_GLOBAL__N__ce142023_7_scan_cu_b25208a04scanINS_6BfloatELb1ELb0EEEvNS0_4ScanE"
    inside = "_ZN6action12_GLOBAL__N_18info_nceI13__nv_bfloat16EEvNS0_6GatherE"
    assert readable([inside]) == {inside: "info_nce<__nv_bfloat16>"}
    assert set(readable([symbol, inside])) == {symbol, inside}


needs_library = pytest.mark.skipif(not LIBRARY.is_file(), reason="the CUDA kernels were not built")


@needs_library
def test_shared_memory_is_what_the_launchers_ask_for() -> None:
    """D = 128 in bfloat16: two sets of queries of two 8 KiB tiles and two stages of two, a scale a row and stage."""
    library = ctypes.CDLL(str(LIBRARY))
    tiles = (2 * 2 + 2 * 2) * 8192 + 2 * 64 * 4
    assert kernel(name="bank_pass<Bfloat, 2, false>").shared(library, 128) == tiles
    assert kernel(name="bank_pass<Bfloat, 2, true>").shared(library, 128) > tiles
    assert kernel(name="bank_pass<Half, 0, true>").shared(library, 128) < tiles
    one = kernel(name="bank_pass<Bfloat, 1, false>").shared(library, 128)
    assert one == kernel(name="student_grad<Bfloat, false, false, 2>").shared(library, 128) == tiles - 2 * 8192
    assert kernel(name="student_grad<Bfloat, true, false, 2>").shared(library, 128) == tiles
    words = 4 * (8 + 3 * 16 * 4)  # of four warps: where their lines begin; counts, limits and labels of 16 queries
    assert kernel(name="student_grad<Bfloat, true, true, 2>").shared(library, 128) == tiles + 2 * 64 * 4 + words
    assert kernel(name="verdicts<Bfloat>").shared(library, 128) == (2 + 2 * 2) * 8192 + 2 * 2 * 64 * 4 + words
    assert kernel(name="buffered<Half>").shared(library, 128) < tiles
    assert kernel(name="bank_grad<Bfloat, true>").shared(library, 128) == (2 + 2 * 4) * 8192 + 2 * 64 * 12 * 4
    assert Kernel("sm_80", "order", 30, 77, ()).shared(library, 128) == 77


needs_disassembler = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None and not shutil.which("cuobjdump"), reason="no disassembler"
)


@pytest.fixture(scope="module")
def built() -> list[Kernel]:
    return list(kernels())


@needs_library
@needs_disassembler
def test_the_library_has_every_streaming_kernel_for_every_architecture(built: list[Kernel]) -> None:
    found = {(kernel.arch, kernel.name.partition("<")[0]) for kernel in built}
    archs = {arch for arch, _ in found}
    assert archs and {(arch, name) for arch in archs for name in STREAMING} <= found


@needs_library
@needs_disassembler
def test_no_kernel_of_the_library_has_a_fault(built: list[Kernel]) -> None:
    library, chips = ctypes.CDLL(str(LIBRARY)), {f"sm_{chip.capability}": chip for chip in CHIPS}
    faults = {
        (kernel.arch, kernel.name): kernel.faults(chips.get(kernel.arch, A100), kernel.shared(library, 128))
        for kernel in built
    }
    assert {name: found for name, found in faults.items() if found} == {}


LOOP = """
/*0000*/ LDGSTS.E.BYPASS.128 [R5], [R6.64] ;
/*0010*/ BAR.SYNC.DEFER_BLOCKING 0x0 ;
/*0020*/ @!P0 BRA 0x60 ;
/*0030*/ LDGSTS.E.BYPASS.128 [R5], [R6.64], !P3 ;
/*0040*/ IADD3 R1, R1, 0x1, RZ ;
/*0050*/ BRA 0x70 ;
/*0060*/ LDGSTS.E.BYPASS.128 [R5], [R6.64] ;
/*0070*/ HMMA.16816.F32 R4, R8, R10, R4 ;
/*0080*/ ISETP.NE.AND P1, PT, R1, R2, PT ;
/*0090*/ @P1 BRA 0x70 ;
/*00a0*/ @P2 BRA 0xd0 ;
/*00b0*/ FSEL R1, R1, RZ, P0 ;
/*00c0*/ FSEL R2, R2, RZ, P0 ;
/*00d0*/ MUFU.EX2 R1, R1 ;
/*00e0*/ @P4 BRA 0x110 ;
/*00f0*/ STG.E.64 [R2.64], R4 ;
/*0100*/ IADD3 R2, R2, 0x1, RZ ;
/*0110*/ @P5 BRA 0x10 ;
/*0120*/ EXIT ;
"""


def test_a_tile_takes_the_shortest_way_with_all_of_the_work() -> None:
    sass = LOOP.strip().splitlines()
    assert Tiles(sass).lines == range(1, 18)
    # Barrier, jump, the copy that asks nothing; three for each chunk; over the mask; exponential, over the store, back.
    assert [Tiles(sass).executed(chunks) for chunks in (1, 2)] == [3 + 3 + 1 + 3, 3 + 6 + 1 + 3]
    assert Tiles(sass, "STG").executed(1) == 10 + 2
    assert for_a_pair("verdicts<Half>", sass) == {"verdicts<Half>": 15 / 32, "verdicts<Half>, labels": 13 / 32}
    assert for_a_pair("verdicts<Exact>", sass) == {}


def test_a_kernel_that_exceeds_its_budget_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = LOOP.strip().splitlines()
    monkeypatch.setitem(BUDGETS, "verdicts<Half>", 15 / 32)
    assert kernel(*lines, name="verdicts<Half>").faults(A100, 0) == []
    monkeypatch.setitem(BUDGETS, "verdicts<Half>", 14 / 32)
    assert kernel(*lines, name="verdicts<Half>").faults(A100, 0) == [
        "0.47 instructions a pair for verdicts<Half>, 0.4375 at most"
    ]


@needs_library
@needs_disassembler
def test_every_budget_is_that_of_a_kernel_and_near_what_it_needs(built: list[Kernel]) -> None:
    needed = [(name, needed) for kernel in built for name, needed in kernel.for_a_pair.items()]
    assert {name for name, _ in needed} == set(BUDGETS)
    for name, budget in BUDGETS.items():
        assert 0.9 * budget < max(x for title, x in needed if title == name) <= budget
