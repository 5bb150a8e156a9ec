"""Which tile a streaming kernel runs with, by features, dtype and GPU.

``python -m tools.machine_code.triton_kernels`` compiles every choice without a GPU and checks it: no spills on the way
through the loop, shared memory within the chip's, tensor-core instructions. A choice that fails is not made here. Where
``python -m tools.tuning.tiles`` has measured the GPU, its table takes precedence over these rules.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .launch import INTERPRETED, capability, float32_precision, power_of_two
from .tuned import tuned


class Tile(NamedTuple):
    """One configuration of a streaming kernel."""

    block_n: int  # queries
    block_m: int  # bank rows
    width: int  # features that a product takes at a time
    warps: int
    stages: int

    def out(self, features: int) -> int:
        """Columns of a gradient that one program accumulates."""
        return features if features == self.width else min(128, features & -features)


def width(features: int, dtype: torch.dtype) -> int:
    """Features that a product takes at a time: all, which then stay loaded, or a part."""
    return max(16, power_of_two(features)) if features <= _kept(dtype) else min(_kept(dtype), 64)


def _kept(dtype: torch.dtype) -> int:
    """Up to how many features a program keeps its block of rows; with more, it loads both sides again and again."""
    if _exact(dtype):
        return 32
    return 64 if dtype == torch.float32 else 128


def _tile(features: int, dtype: torch.dtype, block_n: int, block_m: int, warps: int, stages: int) -> Tile:
    if INTERPRETED:  # here programs and operations cost time, elements hardly any
        block_n = block_m = 128
    return Tile(block_n, block_m, width(features, dtype), warps, stages)


def _exact(dtype: torch.dtype) -> bool:
    """float32 products without tensor cores, which take many registers."""
    return dtype == torch.float32 and float32_precision() == "ieee" and not INTERPRETED


def _by_rows(device: torch.device) -> bool:
    """Before sm_90 all warps of a product stand side by side along its rows, 16 each; a further one repeats another."""
    return capability(device) < 90 and not INTERPRETED


def bank_pass_tile(features: int, dtype: torch.dtype, device: torch.device, sums: bool = True) -> Tile:
    """For a pass over the bank that keeps sums or maxima of a block of queries.

    Without ``sums`` it waits for memory where a bank does not fit the L2: more queries read the bank less often.
    """
    if found := tuned("bank_pass", features, dtype, device):
        return _tile(features, dtype, *found)
    if _exact(dtype):
        return _tile(features, dtype, 32, 32, 4, 2)
    kept = features <= _kept(dtype)
    if not kept or dtype == torch.float32:
        spilled = capability(device) >= 100 and dtype != torch.float32  # by 8 warps
        # For three programs a multiprocessor, at which ptxas aims there, 64 rows are too many by a register; in float32
        # Triton 3.6 spills with more features, too.
        narrow = _by_rows(device) and not kept and (features <= 128 or dtype == torch.float32)
        return _tile(features, dtype, 64, 32 if narrow else 64, 4 if kept or spilled or _by_rows(device) else 8, 2)
    if capability(device) == 90:
        return _tile(features, dtype, 64, 128, 4, 2) if sums else _tile(features, dtype, 128, 64, 4, 3)
    return _tile(features, dtype, 128, 64, 8, 3)


def selection_tile(features: int, dtype: torch.dtype, device: torch.device) -> Tile:
    """For the selection by a buffer, which takes registers from the block of queries."""
    if found := tuned("selection", features, dtype, device):
        return _tile(features, dtype, *found)
    if _exact(dtype):
        return _tile(features, dtype, 16, 32, 4, 2)
    streamed = features > _kept(dtype) or dtype == torch.float32
    stages = 2 if streamed or features <= 32 else 3
    if capability(device) >= 100:
        return _tile(features, dtype, 32, 64, 8, stages)  # Triton 3.6 fails on 64 queries
    if not streamed:
        few = _by_rows(device) and features <= 16  # Triton 3.6 keeps three programs, for which 64 queries are too many
        return _tile(features, dtype, 32 if few else 64, 64, 4, stages)
    if _by_rows(device):
        return _tile(features, dtype, 64, 32, 4, stages)
    return _tile(features, dtype, 64, 32 if dtype == torch.float32 else 64, 8, stages)


def student_grad_tile(
    features: int, dtype: torch.dtype, device: torch.device, verdicts: bool = False, pair: bool = True
) -> Tile:
    """For the student's gradient; the selection's verdicts beside it take registers that a measured tile may lack.

    Without a teacher (no ``pair``) ptxas aims at four programs a multiprocessor, for which 32 rows are too many.
    """
    if not verdicts and (found := tuned("student_grad", features, dtype, device)):
        return _tile(features, dtype, *found)
    if _exact(dtype):
        return _tile(features, dtype, 16 if features > 32 and (verdicts or not pair) else 32, 32, 4, 2)
    if dtype == torch.float32 or features > _kept(dtype):
        if _by_rows(device):
            wide = dtype == torch.float32 and features <= _kept(dtype) and not verdicts
            return _tile(features, dtype, 64, 64 if wide else 32, 4, 2)
        return _tile(features, dtype, 64, 64, 8, 2)
    if capability(device) >= 90:
        return _tile(features, dtype, 128, 64, 8, 3)
    if verdicts:  # with many features Triton 3.6 has no registers for 64 queries
        return _tile(features, dtype, 32, 64, 4, 3) if features > 64 else _tile(features, dtype, 64, 32, 4, 3)
    return _tile(features, dtype, 64, 64, 4, 3)


def bank_grad_tile(features: int, dtype: torch.dtype, device: torch.device) -> Tile:
    """For the bank's gradient, where queries are streamed past a block of bank rows."""
    if found := tuned("bank_grad", features, dtype, device):
        return _tile(features, dtype, *found)
    if _exact(dtype):
        return _tile(features, dtype, 32, 32, 4, 2)
    if dtype == torch.float32 or features > _kept(dtype):
        return _tile(features, dtype, 32, 64, 4 if _by_rows(device) else 8, 2)
    # For B200 Triton 3.6 leaves the loop out of a kernel for 128 bank rows of so many features.
    return _tile(features, dtype, 32, 64 if capability(device) >= 100 and features > 64 else 128, 8, 3)
