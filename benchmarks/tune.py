"""``python -m benchmarks.tune``: measure on a GPU which tiles are the fastest, and write them into the package.

For each streaming kernel, dtype and width, every candidate is compiled; one that spills in its loop or takes no
products on tensor cores is left out; the others are timed within the operator, whose other kernels stay the same. The
table is ``action_kernels/backends/triton/tuned/<device name>.json``, which the backend reads on a GPU of that name.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from unittest import mock

import torch

from .compiled import Call, Chip, launches
from .occupancy import faults_of
from .sass import Loop

KINDS = ((torch.bfloat16, "ieee"), (torch.float16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee"))
FEATURES = (32, 64, 128, 256, 512)
LENGTH = 16384

# Kernel in the table: (the function that chooses its tile, its name, the call that needs it).
KERNELS = {
    "scan": ("scan_tile", "scan", {}),
    "selection": ("scan_tile", "scan", {"k": 64}),
    "direction": ("direction_tile", "direction", {"gradient": True}),
    "bank_gradient": ("bank_tile", "bank_gradient", {"bank_gradient": True}),
}


def candidates() -> Iterator[dict[str, int]]:
    for block_n, block_m, warps, stages in product((32, 64, 128), (32, 64, 128), (4, 8), (2, 3, 4)):
        if block_n * block_m <= 128 * 128 // (2 if warps == 4 else 1):
            yield {"block_n": block_n, "block_m": block_m, "warps": warps, "stages": stages}


def here() -> Chip:
    """The GPU that is there."""
    properties = torch.cuda.get_device_properties(0)
    capability = 10 * properties.major + properties.minor
    shared, processors = properties.shared_memory_per_multiprocessor, properties.multi_processor_count
    return Chip(properties.name, capability, shared, processors, properties.regs_per_multiprocessor)


def fastest(kernel: str, call: Call, chip: Chip) -> dict[str, float] | None:
    """The fastest candidate with its milliseconds; None where none compiles without faults."""
    from triton.testing import do_bench

    from action_kernels.backends import triton
    from action_kernels.backends.triton.tiles import Tile, width

    choice, launched, _ = KERNELS[kernel]
    inputs = call.inputs("cuda")
    best = None
    for candidate in candidates():
        n, m, warps, stages = candidate.values()
        tile = Tile(n, m, width(call.features, call.dtype), warps, stages)
        with mock.patch.object(triton, choice, lambda *_, tile=tile, **__: tile):
            try:
                made = next(x for x in launches(chip, call) if x.name == launched).compile()
                if faults_of(made, call.tensor_cores, Loop(made.sass).spills()[0]):
                    continue
                span = do_bench(lambda: call.run(inputs))
            except Exception as error:  # of the compiler, or of a launch that asks for too much
                print(f"  without {tile}: {type(error).__name__}: {str(error).splitlines()[:1]}")
                continue
        if best is None or span < best["ms"]:
            best = {**candidate, "ms": round(span, 5)}
    return best


def main() -> int:
    argparse.ArgumentParser(prog="python -m benchmarks.tune", description="Measure tiles on a GPU.").parse_args()
    if not torch.cuda.is_available():
        print("Tuning measures on a GPU, and PyTorch finds no CUDA device here.", file=sys.stderr)
        return 2
    import triton

    from action_kernels.backends.triton.tuned import key_of, path_of

    chip, tiles = here(), {}
    versions = {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda}
    path = path_of(chip.name)
    path.parent.mkdir(exist_ok=True)
    for (dtype, precision), features, kernel in product(KINDS, FEATURES, KERNELS):
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        call = Call(dtype, precision, features, groups=1, queries=LENGTH, rows=LENGTH)
        key = key_of(kernel, features, dtype)
        if (best := fastest(kernel, replace(call, **KERNELS[kernel][2]), chip)) is None:
            print(f"{key}: no candidate compiles without faults")
            continue
        tiles[key] = best
        print(f"{key}: {best}", flush=True)
        path.write_text(json.dumps({"device": chip.name, **versions, "tiles": tiles}, indent=1) + "\n")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
