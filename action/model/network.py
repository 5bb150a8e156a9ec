"""What a segmentation network is to the stages. The built-in U-Net is one, ``HookedNetwork`` makes one of any other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class NetworkOutput(NamedTuple):
    """What a network computes for a batch of slices.

    Attributes:
        logits: [B, classes, H, W], in single precision at the least also under autocast.
        features: maps [B, C, h, w], coarse to fine: the coarsest of the encoder, then those of the decoder's levels,
            the last of them [B, C, H, W].
    """

    logits: Tensor
    features: list[Tensor]


class Network(nn.Module, ABC):
    """A 2-D segmentation network whose maps the stages may use.

    Attributes:
        in_channels: channels of the images.
        widths: C of each of the features, coarse to fine; empty: it has none, which some methods cannot do with.
    """

    in_channels: int
    widths: tuple[int, ...]

    @abstractmethod
    def forward(self, images: Tensor) -> NetworkOutput:
        """Images [B, in_channels, H, W] to logits and features."""

    @abstractmethod
    def coarsest(self, images: Tensor) -> Tensor:
        """The first of the features alone [B, C, h, w], at the price of the encoder."""

    @abstractmethod
    def perturbed(self, images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits [B, classes, H, W] where ``change`` has been applied to maps that the decoder reads."""


def in_single(logits: Tensor) -> Tensor:
    """The logits in single precision at the least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
