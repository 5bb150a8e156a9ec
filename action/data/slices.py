"""Slices of a batch: images, their labels and confidences."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

Slices = dict[str, Tensor]
"""Under ``image`` [B, C, H, W] of C channels; under ``label`` and, for pseudo-labels, ``confidence`` (0: outside the
image) [B, 1, H, W]; all float."""


class WholeSlices(NamedTuple):
    """Slices of different sizes, each in the upper left corner of a canvas that is zero elsewhere.

    Attributes:
        canvas: [B, channels, H, W], as large as the largest of them.
        sizes: height and width of each.
    """

    canvas: Slices
    sizes: list[tuple[int, int]]
