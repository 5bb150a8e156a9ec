"""Slices of a batch: images, their labels and confidences."""

from torch import Tensor

Slices = dict[str, Tensor]
"""Under ``image``, ``label`` and, for pseudo-labels, ``confidence`` (0: outside the image), each [B, 1, H, W]."""
