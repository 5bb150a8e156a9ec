"""Classes as users write them, which tests name in settings as ``own_classes:NAME``."""

from __future__ import annotations

import torch
from torch import nn

from action.data.cases import Case
from action.data.formats.acdc import Acdc
from action.model.network import Network, NetworkOutput
from action.stages.base import StepResult
from action.stages.copy_paste import CopyPaste
from action.stages.supervised import Supervised


class Shallow(nn.Module):
    """Two levels; returns logits alone."""

    def __init__(self, in_channels: int, out_channels: int, width: int = 4) -> None:
        super().__init__()
        self.down = nn.Conv2d(in_channels, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.5)
        self.up = nn.ConvTranspose2d(width, 2 * width, 2, stride=2)
        self.flat = nn.Flatten()
        self.unused = nn.Identity()
        self.out = nn.Conv2d(2 * width, out_channels, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.up(self.drop(self.norm(self.down(images)).relu()))
        self.flat(maps)
        return self.out(maps)


class Coarse(Shallow):
    """Returns logits of half the image's size."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images)[:, :, ::2, ::2]


class Deep(Shallow):
    """Returns a list in training, as networks with deep supervision do."""

    def forward(self, images: torch.Tensor) -> object:
        logits = super().forward(images)
        return [logits] if self.training else logits


class Native(Network):
    """Says itself what its features are."""

    def __init__(self, in_channels: int, out_channels: int, says: int = 3) -> None:
        super().__init__()
        self.in_channels, self.widths = in_channels, (3, says)
        self.down = nn.Conv2d(in_channels, 3, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(3, 3, 2, stride=2)
        self.out = nn.Conv2d(3, out_channels, 1)

    def decode(self, coarsest):
        maps = self.up(coarsest)
        return NetworkOutput(self.out(maps), [coarsest, maps])

    def forward(self, images):
        return self.decode(self.coarsest(images))

    def coarsest(self, images):
        return self.down(images)

    def perturbed(self, images, change):
        return self.decode(change(self.coarsest(images))).logits


class Focal(Supervised):
    """Another loss of the labelled slices."""

    name = "focal"
    loss_names = ("loss",)

    def losses(self, network, batch, step, rng):
        logits = self.segmented(network.student, batch["image"]).logits
        likely = logits.log_softmax(1).gather(1, batch["label"].long())
        return StepResult({"loss": -((1 - likely.exp()).square() * likely).mean()})


class Pasted(CopyPaste):
    """Another name for a method that learns from slices without labels."""

    name = "pasted"


class OneFrame(Acdc):
    """The first frame of every patient."""

    def find_cases(self, root) -> list[Case]:
        return [case for case in super().find_cases(root) if case.name.endswith("_frame01")]
