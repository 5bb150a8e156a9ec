"""Slices of a batch: images, their labels and confidences."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

Slices = dict[str, Tensor]
"""Under ``image``, ``label`` and, for pseudo-labels, ``confidence`` (0: outside the image), each [B, 1, H, W] float."""


class WholeSlices(NamedTuple):
    """Slices of different sizes, each in the upper left corner of a canvas that is zero elsewhere.

    Attributes:
        canvas: [B, 1, H, W], as large as the largest of them.
        sizes: height and width of each.
    """

    canvas: Slices
    sizes: list[tuple[int, int]]
