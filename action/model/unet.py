"""The U-Net of the published runs (16 to 256 channels: 1.81 M parameters for 1 -> 4 channels)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from action.errors import InputError
from action.model.network import Network, NetworkOutput, in_single


def channels_of(weights: Mapping[str, Tensor]) -> int:
    """Channels of the images that a U-Net with these weights takes."""
    return int(weights["encoder.0.0.weight"].shape[1])


class ConvBlock(nn.Sequential):
    """Convolution 3x3, batch norm, LeakyReLU, dropout, convolution 3x3, batch norm, LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Dropout(dropout) if dropout else nn.Identity(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(0.01, inplace=True),
        )


class UpBlock(nn.Module):
    """Reduce by a 1x1 convolution, double the size bilinearly, join with the encoder's map, convolve."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, out_channels, 1)
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.block = ConvBlock(2 * out_channels, out_channels)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        joined: Tensor = self.block(torch.cat([skip, self.upsample(self.reduce(coarse))], dim=1))
        return joined


class UNet(Network):
    """2-D U-Net; its features are [B, channels[-1], H/2^n, W/2^n] ... [B, channels[0], H, W].

    Args:
        in_channels: channels of the input image.
        classes: classes including background.
        channels: width of each level, fine to coarse; two levels at the least.
        dropout: rate in each level of the encoder, fine to coarse; none: without dropout.

    Shapes: input [B, in_channels, H, W], with H and W multiples of ``2 ** (len(channels) - 1)``.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        dropout: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.in_channels, self.channels = in_channels, tuple(channels)
        rates = tuple(dropout) or (0.0,) * len(self.channels)
        if len(self.channels) < 2 or len(rates) != len(self.channels):
            raise InputError(
                f"model.channels {self.channels} with model.dropout {rates}: two or more levels are needed, "
                "and a rate for each"
            )
        widths = (in_channels, *self.channels)
        self.encoder = nn.ModuleList(ConvBlock(a, b, p) for a, b, p in zip(widths[:-1], widths[1:], rates, strict=True))
        self.pool = nn.MaxPool2d(2)
        self.widths = self.channels[::-1]
        self.decoder = nn.ModuleList(UpBlock(a, b) for a, b in pairwise(self.widths))
        self.output = nn.Conv2d(self.channels[0], classes, 3, padding=1)
        # Convolutions and pooling read pixel-major maps without reordering them.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, images: Tensor) -> list[Tensor]:
        """Feature maps of every level, fine to coarse."""
        maps = []
        x = images.contiguous(memory_format=torch.channels_last)
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else self.pool(x))
            maps.append(x)
        return maps

    def decode(self, maps: list[Tensor]) -> NetworkOutput:
        """Logits and decoder maps from the encoder's maps."""
        x = maps[-1]
        features = [x]
        for block, skip in zip(self.decoder, reversed(maps[:-1]), strict=True):
            x = block(x, skip)
            features.append(x)
        return NetworkOutput(in_single(self.output(x)), features)

    def forward(self, images: Tensor) -> NetworkOutput:
        return self.decode(self.encode(images))

    def coarsest(self, images: Tensor) -> Tensor:
        return self.encode(images)[-1]

    def perturbed(self, images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits from changed maps of every level of the encoder. See ``Network.perturbed``."""
        return self.decode([change(maps) for maps in self.encode(images)]).logits
