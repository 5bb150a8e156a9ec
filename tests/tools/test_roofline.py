"""The arithmetic of tools.estimates.roofline, by hand: work of a launch, instructions of a loop, clocks, floors."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("no Triton", allow_module_level=True)

from tools.estimates.launch_work import tiles_with_candidates, work
from tools.estimates.roofline import CALLS, least, least_time
from tools.estimates.throughput import RATES, Clocks, clocks, flop, merged
from tools.machine_code.calls import Call, Gather
from tools.machine_code.chips import A100
from tools.machine_code.launches import Launch, launches
from tools.machine_code.sass import Instruction, Loop, parse

# Two products of 16 x 8 x 16 a feature block, once as many behind; a selection's branch with a call in a part of it.
SASS = """
.L_rows:
  /*0010*/                   FMUL R1, R2, R3 ;
.L_features:
  /*0020*/                   LDSM.16.M88.4 R4, [R9] ;
  /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
  /*0040*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
  /*0050*/               @P1 BRA `(.L_features) ;
  /*0060*/                   HMMA.1688.F32.TF32 R4, R8, R10, R4 ;
  /*0070*/                   MUFU.EX2 R5, R5 ;
  /*0080*/              @!PT LDS RZ, [RZ] ;
  /*0090*/                   UIADD3 UR4, UR4, 0x1, URZ ;
  /*00a0*/              @!P0 BRA `(.L_none) ;
  /*00b0*/                   STS.64 [R1], R2 ;
  /*00c0*/              @!P2 BRA `(.L_none) ;
  /*00d0*/                   IADD3 R1, R2, R3, RZ ;
  /*00e0*/                   CALL.REL.NOINC `(clear) ;
.L_none:
  /*00f0*/                   HFMA2.MMA R3, -RZ, RZ, 0, 0 ;
  /*0100*/               @P1 BRA `(.L_rows) ;
"""


class Function:
    """As much of a kernel as a launch's work needs."""

    def __init__(self, name: str) -> None:
        self.fn, self.arg_names = SimpleNamespace(__name__=name), []


def launch(name: str, **changes: object) -> Launch:
    """One group, N = 6 and M = 10 with D = 16, in tiles of 4 x 4; the bank in two splits of 8 and 2."""
    rows = torch.empty(1, 6, 16, dtype=torch.bfloat16, device="meta")
    values: dict[str, object] = {
        "student": rows,
        "FEATURES": 16,
        "WIDTH": 16,
        "OUT": 16,
        "TERMS": 2,
        "query": rows,
        "SIDES": 2,
        "PAIR": True,
        "LABELLED": False,
        "queries": 6,
        "rows": 10,
        "works": 4,
        "num_splits": 2,
        "span": 8,
        "BLOCK_N": 4,
        "BLOCK_M": 4,
        "k": 0,
        "sums": torch.empty(6, 2, 1, 6, device="meta"),
        "maxima": None,
        "words": None,
        "keys": torch.empty(1, 6, 4, dtype=torch.int64, device="meta"),
        "partial": torch.empty(2, 1, 6, 16, device="meta"),
    }
    return Launch(Function(name), (), (4,), {**values, **changes}, A100)


@pytest.mark.parametrize("name", CALLS)
def test_every_launch_of_every_call_has_its_work(name: str) -> None:
    """A launch is read by the names of its kernel's arguments, which are the kernel's to change."""
    call = CALLS[name]
    found = {launch.name: work(launch) for launch in launches(A100, call)}
    assert all(x.flop > 0 and x.compulsory > 0 for x in found.values())
    if isinstance(call, Gather):
        assert set(found) == {"info_nce", "info_nce_grad"}
        assert all(x.pairs == call.groups * call.queries * call.k for x in found.values())
        return
    pairs = call.groups * call.queries * call.rows
    assert all(x.pairs == pairs for x in found.values())
    gradients = {"student_grad"} if call.student_grad else set()
    assert {"bank_pass"} | gradients <= set(found)


def test_work_of_a_bank_pass_by_hand() -> None:
    found = work(launch("_bank_pass"))
    assert (found.works, found.tiles, found.tile_pairs) == (4, 2, 16)
    assert found.flop == 6 * 10 * 2 * (16 + 16)  # both similarities
    assert found.exponentials == 2 * 6 * 10
    bank, queries = 10 * (16 * 2 + 4), 2 * 6 * (16 * 2 + 4)
    assert found.compulsory == bank + queries + 6 * 2 * 6 * 4
    assert found.traffic(bank) == found.compulsory and found.traffic(bank - 1) == found.compulsory + bank
    assert found.tile_bytes == 4 * 16 * 2
    alone = work(launch("_bank_pass", SIDES=0, sums=None))
    assert (alone.flop, alone.exponentials) == (found.flop // 2, 0)
    one = work(launch("_bank_pass", SIDES=1))
    assert (one.flop, one.exponentials) == (found.flop // 2, 6 * 10)
    maxima = torch.empty(1, 6, 3, device="meta")
    assert work(launch("_bank_pass", maxima=maxima)).compulsory == found.compulsory + 6 * 3 * 4


def test_work_of_indexed_rows_by_hand() -> None:
    """Two queries, five entries each, of a bank of three rows with D = 16 in float32."""
    call = Gather(torch.float32, 16, k=5, groups=1, queries=2, rows=3, all_gradients=False)
    recorded = launches(A100, call)
    forward, backward = (work(launch) for launch in recorded)
    tile = recorded[0]["BLOCK_Q"] * recorded[0]["BLOCK_K"]
    assert (forward.works, forward.tiles, forward.pairs) == (recorded[0].grid[0], 1, 10)
    assert forward.flop == 10 * 2 * (16 + 16)  # the length of a row, and the similarity
    assert backward.flop == 10 * 2 * (16 + 16 + 16)  # and its share of the gradient
    row = 16 * 4
    assert forward.compulsory == (3 + 2 * 2) * row + 10 * 8 + 2 * (4 + 8)
    assert backward.compulsory == forward.compulsory + 2 * 2 * row
    assert forward.traffic(3 * row) == forward.compulsory
    assert forward.traffic(3 * row - 1) == forward.compulsory + (10 - 3) * row
    assert (forward.tile_pairs, forward.tile_bytes) == (tile, tile * row)


def test_the_way_back_from_code_behind_a_loop_is_no_loop() -> None:
    sass = [".L_rows:", "FFMA R1, R2, R3, R4 ;", "BRA `(.L_cold) ;", ".L_back:", "MUFU.EX2 R5, R5 ;"]
    sass += ["@P1 BRA `(.L_rows) ;", "EXIT ;", ".L_cold:", "FFMA R1, R2, R3, R4 ;", "BRA `(.L_back) ;"]
    assert Loop(sass).lines == range(6)


def test_work_of_a_selection_by_hand() -> None:
    bank, queries = 10 * (16 * 2 + 4), 6 * (16 * 2 + 4)
    words, labels = torch.empty(1, 6, 5, dtype=torch.int64, device="meta"), torch.empty(1, 10, device="meta")
    verdicts = work(launch("_verdicts", words=words, LABELLED=True, bank_labels=labels))
    assert (verdicts.flop, verdicts.exponentials) == (6 * 10 * 2 * 16, 0)
    assert verdicts.compulsory == bank + queries + 4 * (6 + 10) + 6 * 5 * 8
    buffered = work(launch("_buffered"))
    assert (buffered.works, buffered.flop, buffered.compulsory) == (4, verdicts.flop, bank + queries + 6 * 4 * 8)


def test_work_of_gradients_by_hand() -> None:
    """A weight of 16-bit rows goes in as one or two terms; columns that are split repeat the similarities."""
    pairs = 6 * 10
    assert work(launch("_student_grad")).flop == pairs * 2 * (2 * 16 + 2 * 16)
    split = work(launch("_student_grad", FEATURES=32, WIDTH=16, OUT=16))
    assert split.flop == pairs * 2 * 2 * (2 * 32 + 2 * 16) and split.exponentials == 2 * 2 * pairs
    assert split.tile_bytes == 2 * (32 * (4 + 4 + 4) + 16 * 4)
    assert work(launch("_bank_grad")).flop == pairs * 2 * (2 * 16 + 4 * 16)
    assert work(launch("_student_grad", TERMS=1)).flop == pairs * 2 * (2 * 16 + 16)
    assert work(launch("_student_grad", PAIR=False)).flop == pairs * 2 * (16 + 2 * 16)
    assert work(launch("_bank_grad", PAIR=False)).flop == pairs * 2 * (16 + 2 * 16)
    whole = launch("_student_grad", student=torch.empty(1, 6, 16, device="meta"))
    assert work(whole).flop == pairs * 2 * (2 * 16 + 16)


def test_instructions_of_a_loop() -> None:
    loop = Loop(SASS.splitlines())
    once, inner, append = loop.parts()
    names = [Counter(x.name for x in part.elements()) for part in (once, inner, append)]
    assert names[0] == Counter(["FMUL", "HMMA.1688.F32.TF32", "MUFU.EX2", "LDS", "UIADD3", "BRA", "BRA", "HFMA2.MMA"])
    assert names[1] == {"LDSM.16.M88.4": 1, "HMMA.16816.F32.BF16": 2, "BRA": 1}
    assert names[2] == {"STS.64": 1, "BRA": 1}
    assert flop(merged([(once, 1), (inner, 3)]), warps=4) == 4 * (3 * 2 * 2 * 16 * 8 * 16 + 2 * 16 * 8 * 8)


def test_clocks_by_hand() -> None:
    once, inner, append = Loop(SASS.splitlines()).parts()
    found = clocks(RATES["A100"], inner, 8, "16")
    rate = 312e12 / (108 * 1.41e9)  # 2049 flop per clock
    assert found.tensor == pytest.approx(8 * 2 * 4096 / rate) and found.tensor == pytest.approx(32, rel=1e-3)
    assert found.shared == 8 * 512 / 128 and found.issue == 8 * 4 / 4
    found = clocks(RATES["A100"], once, 8, "tf32")
    assert (found.special, found.floats, found.issue) == (8 * 32 / 16, 8 * 32 / 64, 8 * 8 / 4)
    assert found.integers == 8 * 32 / 64  # the move alone: not the uniform one, and no load that is predicated off
    assert found.shared == 0
    assert clocks(RATES["A100"], append, 8, "16").shared == 8 * 256 / 128
    assert clocks(RATES["H100"], once, 8, "tf32").floats == 8 * 32 / 128


@pytest.mark.parametrize(("operand", "bytes_read"), [("gdesc[UR4]", 2 * 16 * (64 + 128)), ("R20", 2 * 16 * 128)])
def test_a_warp_group_product(operand: str, bytes_read: int) -> None:
    """Four warps make it together; its first operand is in shared memory or in registers."""
    text = f"  /*0010*/   HGMMA.64x128x16.F32.BF16 R56, {operand}, {'gdesc[UR8], ' * (operand == 'R20')}R56 ;"
    instruction = parse(text)
    assert instruction is not None
    found = clocks(RATES["H100"], Counter({instruction: 1}), 8, "16")
    assert found.tensor == pytest.approx(2 * 2 * 64 * 128 * 16 / 4096, rel=1e-3)
    assert found.shared == 2 * bytes_read / 128


def test_the_unit_that_needs_the_most_binds() -> None:
    tile = Clocks(tensor=5, special=3, issue=4)
    assert (tile.binding, tile.overlapped, tile.serial) == ("tensor", 5, 9)
    assert (tile + Clocks(issue=4)).binding == "issue" and (tile * 2).overlapped == 10


def test_least_time_by_hand() -> None:
    found = least_time(RATES["H100"], "16", 989.4e12, 132 * 16 * 1.83e9 * 2, 3.35e12 / 2)
    assert (found.products, found.exponentials, found.memory) == pytest.approx((1000, 2000, 500))
    assert (found.most, found.sum) == pytest.approx((2000, 3500))
    assert least_time(RATES["A100"], "tf32", 156e12, 0, 0).most == pytest.approx(1000)
    assert least_time(RATES["A100"], "ieee", 2 * 64 * 108 * 1.41e9, 0, 0).most == pytest.approx(1000)


def test_tiles_with_candidates() -> None:
    """A row is among the two best of the first 4 or 8 with probability 1/2 or 1/4; a tile has four pairs."""
    selecting = launch("_buffered", k=2, BLOCK_N=1)
    expected = (1 + (1 - 0.5**4) + (1 - 0.75**4)) / 3
    assert tiles_with_candidates(selecting, 3) == pytest.approx(expected)
    assert tiles_with_candidates(launch("_bank_pass"), 3) == 0
    more = replace(selecting, options={**selecting.options, "k": 3})
    assert tiles_with_candidates(more, 3) > expected
    assert tiles_with_candidates(selecting, 300) < expected


def test_more_of_anything_takes_no_less() -> None:
    sizes = [work(launch("_bank_pass", **x)) for x in ({}, {"rows": 20}, {"queries": 12})]
    for larger in sizes[1:]:
        assert larger.flop == 2 * sizes[0].flop and larger.exponentials == 2 * sizes[0].exponentials
        assert larger.compulsory > sizes[0].compulsory
    wide = work(launch("_bank_pass", FEATURES=32, WIDTH=32))
    assert wide.flop == 2 * sizes[0].flop and wide.exponentials == sizes[0].exponentials
    one = Counter({Instruction("FADD", "", False): 1})
    for rates in RATES.values():
        assert clocks(rates, merged([(one, 2)]), 4, "16") == clocks(rates, one, 8, "16")
        assert clocks(rates, one, 8, "16") == clocks(rates, one, 4, "16") * 2


def test_least_work_of_a_call() -> None:
    call = Call(torch.bfloat16, "ieee", 16, groups=1, queries=6, rows=10)
    inputs = 2 * 16 * (6 + 6 + 10)
    outputs = 6 * (4 + 3 * 8)  # divergence; logit gap and two log-sum-exps in float64
    assert least(call) == (2 * 2 * 60 * 16, 120, inputs + outputs)
    assert least(replace(call, student_grad=True)) == (3 * 2 * 60 * 16, 120, inputs + outputs + 4 * 6 * 16)
    assert least(replace(call, k=3)) == (2 * 2 * 60 * 16, 120, inputs + outputs + 6 * 3 * (4 + 8))
