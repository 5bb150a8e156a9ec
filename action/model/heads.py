"""Projection heads: they exist only in training, and the teacher has averaged copies of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    """Two linear layers with batch norm and a ReLU between.

    Without the batch norm the embeddings of all slices start nearly parallel: both similarity distributions are
    uniform, the divergence is zero, and nothing is learned.
    """
    return nn.Sequential(
        nn.Linear(in_features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out_features)
    )


class GlobalHead(nn.Module):
    """Embedding of a whole slice: global average pool of the coarsest encoder map, two-layer MLP (H of stage 1)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.project = mlp(in_channels, dim, dim)

    def forward(self, coarsest: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, dim]."""
        embedding: Tensor = self.project(coarsest.mean(dim=(2, 3)))
        return embedding


def windows(maps: Tensor, size: int, stride: int) -> Tensor:
    """Cut maps [B, C, H, W] into every ``size`` x ``size`` window, the last row and column included.

    Returns [P, B, C, size, size] with windows in row-major order (a view: nothing is copied).

    Raises:
        ValueError: the map is smaller than a window, or stride does not step onto its last row or column.
    """
    height, width = maps.shape[-2:]
    for name, extent in (("height", height), ("width", width)):
        if extent < size or (extent - size) % stride:
            raise ValueError(
                f"window {size} with stride {stride} does not tile a map of {name} {extent}: "
                f"choose a size and stride with ({name} - size) a multiple of the stride"
            )
    cut = maps.unfold(2, size, stride).unfold(3, size, stride)  # [B, C, rows, columns, size, size]
    return cut.permute(2, 3, 0, 1, 4, 5).flatten(0, 1)


class LocalHead(nn.Module):
    """Embedding of every window of the logit map (stage 2).

    Each window is average-pooled to ``pooled`` x ``pooled``, passes two 1x1 convolutions (C -> 2C -> C) and is
    flattened to C * pooled^2.

    Raises:
        ValueError: the window is not a multiple of ``pooled``, or the stride not one of a pooled cell.
    """

    def __init__(self, classes: int, window: int = 64, stride: int = 32, pooled: int = 8) -> None:
        super().__init__()
        self.cell, self.stride, self.pooled = window // pooled, stride, pooled
        if window % pooled or stride % self.cell:
            raise ValueError(
                f"window {window} must be a multiple of pooled {pooled}, and stride {stride} of window / pooled"
            )
        self.dim = classes * pooled * pooled
        self.project = nn.Sequential(
            nn.Conv2d(classes, 2 * classes, 1), nn.ReLU(inplace=True), nn.Conv2d(2 * classes, classes, 1)
        )

    def positions(self, size: tuple[int, int]) -> int:
        """P, the number of windows in a map of ``size`` (H, W)."""
        window, stride = self.cell * self.pooled, self.stride
        rows, columns = ((extent - window) // stride + 1 for extent in size)
        return rows * columns

    def forward(self, logits: Tensor) -> Tensor:
        """[B, C, H, W] -> [P, B, C * pooled^2], one group a window position, in row-major order."""
        # Windows begin at whole cells, so the map is pooled once, not every window by itself: the same values from
        # cell^2 times less data.
        cut = windows(F.avg_pool2d(logits, self.cell), self.pooled, self.stride // self.cell)
        positions, batch = cut.shape[:2]
        rows: Tensor = self.project(cut.flatten(0, 1)).flatten(1)
        return rows.reshape(positions, batch, self.dim)


class Pixels(NamedTuple):
    """Places in a batch of maps: image b, row y, column x, each int64 [P]."""

    image: Tensor
    y: Tensor
    x: Tensor


class RepresentationHead(nn.Module):
    """Pixel representation for the anatomical contrast: 3x3 convolution on joined decoder maps, ReLU, 1x1 convolution.

    Evaluated only at sampled pixels: the maps are interpolated at the 3x3 neighbourhood of each, so that neither the
    upsampled maps (sum of all decoder widths at full size) nor the representation of a whole image ever exists.
    The result equals the dense head's at those pixels.
    """

    def __init__(self, channels: Sequence[int], dim: int) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.spread = nn.Conv2d(sum(self.channels), dim, 3, padding=1)
        self.project = nn.Conv2d(dim, dim, 1)

    def forward(self, features: Sequence[Tensor], pixels: Pixels) -> Tensor:
        """Decoder maps (coarse to fine; the last at full size) and P pixels -> [P, dim]."""
        steps = torch.arange(-1, 2, device=pixels.y.device)
        y = (pixels.y[:, None, None] + steps[:, None]).expand(-1, 3, 3).flatten()  # [P * 9]
        x = (pixels.x[:, None, None] + steps[None, :]).expand(-1, 3, 3).flatten()
        image = pixels.image[:, None].expand(-1, 9).flatten()
        neighbourhood = torch.cat(_interpolated(features, image, y, x), dim=1)
        # [P * 9, C] -> [P, C * 9] in the order of the convolution's weight.
        patches = neighbourhood.unflatten(0, (-1, 9)).transpose(1, 2).flatten(1)
        hidden = F.relu(F.linear(patches, self.spread.weight.flatten(1), self.spread.bias))
        return F.linear(hidden, self.project.weight.flatten(1), self.project.bias)

    def dense(self, features: Sequence[Tensor]) -> Tensor:
        """The same head at every pixel, [B, dim, H, W]: the plain formulation, for tests and for small images."""
        size = features[-1].shape[-2:]
        joined = torch.cat([F.interpolate(f, size, mode="bilinear", align_corners=True) for f in features], dim=1)
        representation: Tensor = self.project(F.relu(self.spread(joined)))
        return representation


def _interpolated(features: Sequence[Tensor], image: Tensor, y: Tensor, x: Tensor) -> list[Tensor]:
    """Bilinear values (align_corners) of maps [B, C, h, w] at Q places of the last, whose outside is zero: [Q, C] each.

    A weighted sum of four rows of the pixel-major map, which is what ``embedding_bag`` computes without storing the
    four gathered rows. The places are worked out for all maps at once: a device is asked for fewer operations.
    """
    sizes = tuple((feature.shape[-2], feature.shape[-1]) for feature in features)
    height, width = sizes[-1]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    dtype = torch.promote_types(features[-1].dtype, torch.float32)  # coordinates do not fit a 16-bit type
    (heights, widths), (down, right) = _extents(sizes, y.device)
    v = y.clamp(0, height - 1) * down.to(dtype)  # [L, Q]
    u = x.clamp(0, width - 1) * right.to(dtype)
    top, left = v.floor(), u.floor()
    down, right = v - top, u - left
    up, back = 1 - down, 1 - right
    weight = torch.stack([up * back, up * right, down * back, down * right], dim=-1) * inside[:, None]  # [L, Q, 4]
    top, left = top.long(), left.long()
    bottom, end = torch.minimum(top + 1, heights - 1), torch.minimum(left + 1, widths - 1)
    base = image * (heights * widths)
    top, bottom = base + top * widths, base + bottom * widths
    index = torch.stack([top + left, top + end, bottom + left, bottom + end], dim=-1)
    rows = [feature.permute(0, 2, 3, 1).flatten(0, 2) for feature in features]
    return [
        F.embedding_bag(i, row, mode="sum", per_sample_weights=w.to(row.dtype))
        for i, row, w in zip(index, rows, weight, strict=True)
    ]


@lru_cache(maxsize=16)
def _extents(sizes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Heights and widths of L maps, int64, and their steps to a pixel of the last, float64: both [2, L, 1]."""
    extents = torch.tensor(sizes).T[..., None]
    steps = (extents - 1).double() / (extents[:, -1:] - 1).clamp_min(1)
    return extents.to(device), steps.to(device)
