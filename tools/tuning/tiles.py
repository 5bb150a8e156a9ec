"""``python -m tools.tuning.tiles``: measure on a GPU which tiles are the fastest, and write them into the package.

For each streaming kernel, dtype and width, every candidate is compiled; one that spills in its loop or takes no
products on tensor cores is left out; the others are timed within the operator, whose other kernels stay the same. What
an earlier run has measured stays in the table, except what is measured again. The table is
``action_kernels/backends/triton/tuned/<device name>.json``, which the backend reads on a GPU of that name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from multiprocessing import get_context
from typing import Any, Literal

import torch

from ..command import refuse, run
from ..machine_code.calls import Call
from ..machine_code.chips import Chip
from ..machine_code.launches import launches
from ..machine_code.triton_kernels import faults_of, spills_of

KINDS = {  # dtype, and how float32 products are taken
    "bfloat16": (torch.bfloat16, "ieee"),
    "float16": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "ieee": (torch.float32, "ieee"),
}
FEATURES = (32, 64, 128, 256, 512)
ROWS = 16384
QUERIES = 16384
QUERIES_ON_TENSOR_CORES = 65536  # fewer would take less time than to launch them


@dataclass(frozen=True)
class Tuned:
    """A kernel in the table.

    Args:
        launch: its name among the recorded launches.
        needs: what a call has to ask for so that it runs.
    """

    launch: str
    needs: dict[str, Any] = field(default_factory=dict)


KERNELS = {
    "bank_pass": Tuned("bank_pass"),
    "selection": Tuned("buffered", {"k": ROWS // 4, "distill": False}),  # too many for limits
    "student_grad": Tuned("student_grad", {"student_grad": True}),
    "bank_grad": Tuned("bank_grad", {"bank_grad": True}),
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


@dataclass(frozen=True)
class Key:
    """What has a tile of its own in the table."""

    kernel: str
    dtype: torch.dtype
    precision: str
    features: int

    @property
    def call(self) -> Call:
        call = Call(self.dtype, self.precision, self.features, groups=1, rows=ROWS, **KERNELS[self.kernel].needs)
        return replace(call, queries=QUERIES_ON_TENSOR_CORES if call.tensor_cores else QUERIES)

    @property
    def name(self) -> str:
        from action_kernels.backends.triton.tuned import key_of

        with self.in_force():
            return key_of(self.kernel, self.features, self.dtype)

    @contextmanager
    def in_force(self, candidate: dict[str, int] | None = None) -> Iterator[None]:
        """The precision of float32 products, and the kernel's tile."""
        from action_kernels.backends.triton.tuned import FIELDS, key_of, on_trial

        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.precision == "tf32"
        try:
            if candidate is None:
                yield
                return
            block_n, block_m, warps, stages = (candidate[name] for name in FIELDS)
            with on_trial(key_of(self.kernel, self.features, self.dtype), (block_n, block_m, warps, stages)):
                yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before


def compiles(key: Key, chip: Chip, candidate: dict[str, int]) -> bool:
    """Whether the candidate compiles without faults; what was compiled stays in Triton's cache on disk."""
    with key.in_force(candidate):
        try:
            made = next(x for x in launches(chip, key.call) if x.name == KERNELS[key.kernel].launch).compile()
        except Exception:  # the compiler's own, of any type
            return False
        return not faults_of(made, key.call.tensor_cores, spills_of(made))


def fastest(key: Key, chosen: list[dict[str, int]]) -> dict[str, float] | None:
    """The fastest of the candidates with its milliseconds; None where there is none."""
    from triton.testing import do_bench

    call, best = key.call, None
    inputs = call.inputs("cuda")
    for candidate in chosen:
        with key.in_force(candidate):
            try:
                span = do_bench(lambda: call.run(inputs), warmup=10, rep=50, return_mode="median")
            except Exception as error:  # of a launch that asks for too much
                print(f"  without {candidate}: {type(error).__name__}: {str(error).splitlines()[:1]}")
                continue
        if best is None or span < best["ms"]:
            best = {**candidate, "ms": round(span, 5)}
    return best


KernelName = Literal[tuple(KERNELS)]
Kind = Literal[tuple(KINDS)]
Features = Literal[FEATURES]


def main(
    kernels: Sequence[KernelName] = tuple(KERNELS),
    kinds: Sequence[Kind] = tuple(KINDS),
    features: Sequence[Features] = FEATURES,
    jobs: int | None = None,
) -> None:
    """Measure tiles on a GPU.

    Args:
        kernels: to tune.
        kinds: of rows and products.
        features: of a row.
        jobs: compilers at a time; none: one a core.
    """
    if not torch.cuda.is_available():
        refuse("tuning measures on a GPU, and PyTorch finds no CUDA device here")
    import triton

    from action_kernels.backends.triton.tuned import path_of

    chip = here()
    path = path_of(chip.name)
    path.parent.mkdir(exist_ok=True)
    versions = {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda}
    tiles = json.loads(path.read_text())["tiles"] if path.exists() else {}
    order = product(features, kinds, kernels)
    keys = [Key(kernel, *KINDS[kind], count) for count, kind, kernel in order]
    with ProcessPoolExecutor(jobs or os.cpu_count(), get_context("spawn")) as pool:
        made = [[(c, pool.submit(compiles, key, chip, c)) for c in candidates()] for key in keys]
        for key, compiled in zip(keys, made, strict=True):
            best = fastest(key, [candidate for candidate, fine in compiled if fine.result()])
            if best is None:
                print(f"{key.name}: no candidate compiles without faults")
                continue
            tiles[key.name] = best
            print(f"{key.name}: {best}", flush=True)
            path.write_text(json.dumps({"device": chip.name, **versions, "tiles": tiles}, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    run(main)
