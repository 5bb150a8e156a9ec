"""Which tile a kernel runs with: rows of both sides, features at a time, warps, pipeline stages."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .launch import INTERPRETED, power_of_two


class Tile(NamedTuple):
    """One configuration of a streaming kernel."""

    block_n: int  # queries
    block_m: int  # bank rows
    width: int  # features a product takes at a time
    warps: int
    stages: int

    def out(self, features: int) -> int:
        """Columns of a gradient that one program accumulates."""
        return features if features == self.width else self.width


def width(features: int) -> int:
    """Features that a product takes at a time: all of them up to 128, which then stay where they are loaded."""
    return max(16, power_of_two(features)) if features <= 128 else (64 if INTERPRETED else 128)


def scan_tile(features: int, dtype: torch.dtype) -> Tile:
    return Tile(128, 128, width(features), 8, 2) if INTERPRETED else Tile(64, 64, width(features), 8, 2)


def gradient_tile(features: int, dtype: torch.dtype) -> Tile:
    return Tile(128, 128, width(features), 8, 2) if INTERPRETED else Tile(64, 64, width(features), 8, 2)
