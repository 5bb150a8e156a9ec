"""The simulated selection of tools.estimates.long_bank selects, and costs what it should; the machine code's parts."""

from __future__ import annotations

import importlib.util
import shutil

import numpy as np
import pytest

from tools.estimates.long_bank import TILE, Events, Parts, Plan, Walk, estimate, parts, plan
from tools.estimates.throughput import RATES
from tools.machine_code.cuda_kernels import LIBRARY, kernels

PLAN = Plan(works=4, num_splits=4, span=40 * TILE, running=4, kept=50, limit=82, capacity=242, quota=13)


def walked(planned: Plan, similarity: np.ndarray) -> Walk:
    walk = Walk(planned)
    for start in range(0, similarity.shape[2], TILE):
        walk.take(similarity[:, :, start : start + TILE])
    return walk


def test_the_buffers_hold_the_best_of_all_splits() -> None:
    similarity = np.random.default_rng(1).standard_normal((4, 16, 40 * TILE)).astype(np.float32)
    walk = walked(PLAN, similarity)
    for row in range(16):
        best = np.sort(similarity[:, row].ravel())[-50:]
        kept = np.concatenate([walk.keys[split, row, : walk.counts[split, row]] for split in range(4)])
        assert np.array_equal(np.sort(kept)[-50:], best)
    assert walk.events.tiles == 40
    assert walk.events.exchanges == 6  # after 1, 2, 4, 8, 16 and 32 tiles


def test_splits_that_tell_each_other_take_fewer_candidates() -> None:
    similarity = np.random.default_rng(2).standard_normal((4, 16, 40 * TILE)).astype(np.float32)
    together = walked(PLAN, similarity).events.candidates
    alone = np.mean([walked(PLAN._replace(num_splits=1), similarity[i : i + 1]).events.candidates for i in range(4)])
    assert together < 0.6 * alone


def test_falling_similarities_cost_no_turns_after_the_first_tiles() -> None:
    falling = np.tile(-np.arange(10 * TILE, dtype=np.float32), (1, 16, 1))
    walk = walked(PLAN._replace(num_splits=1), falling)
    # 242 - 64 = 178 fit before a clearing; the third tile fills the buffer.
    assert walk.events.candidates == 3 * TILE and walk.events.clears == 16
    assert walk.events.turns == 3 * 32  # every similarity of a lane, one after the other


needs_library = pytest.mark.skipif(not LIBRARY.is_file(), reason="the CUDA kernels were not built")


@needs_library
def test_a_long_bank_is_shared_between_the_multiprocessors() -> None:
    planned = plan(132, 1024, 1 << 20, 512)
    assert planned.works == 16 * planned.num_splits and planned.num_splits * planned.span == 1 << 20
    assert planned.works <= 2 * 132 and planned.quota == 512 / planned.num_splits
    assert plan(132, 1 << 16, 1 << 20, 512).num_splits == 1


def test_the_estimate_by_hand() -> None:
    """Two walks of ten tiles on the fullest multiprocessor, 100 instructions a tile."""
    rates = RATES["H100"]
    planned = PLAN._replace(works=2 * rates.chip.processors)
    found = estimate(rates, planned, Events(tiles=10), Parts(40, 10, 20, 0, 0, 0), 64, 1000)
    assert found.issue == pytest.approx(1000 * 2 * 10 * 100 / rates.clock)
    flop = 2 * 10 * 2 * 128 * TILE * TILE
    per_clock = rates.tensor / rates.chip.processors * rates.mma_sync
    assert found.tensor == pytest.approx(1000 * flop / per_clock)
    assert found.written == pytest.approx(1000 * max(2 * 64 * 1000 * 128 / rates.tensor, 2 * 64 * 1000 / rates.memory))
    assert (found.overlapped, found.serial) == (max(found.issue, found.tensor), found.issue + found.tensor)


@needs_library
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None and not shutil.which("cuobjdump"), reason="no disassembler"
)
def test_parts_of_the_pass_are_found() -> None:
    kernel = next(kernel for kernel in kernels() if kernel.name == "buffered<Half>")
    found = parts(kernel)
    assert 32 < found.product < 300  # 32 products of 16 x 8 x 16 for a warp's 16 x 64 over 64 features
    assert 4 < found.copy < 300 and 96 < found.tile < 2000
    assert 20 < found.turn < 300 and 1 < found.compare < 20 and 4 < found.move < 100
