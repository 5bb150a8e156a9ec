"""Segmentation of whole volumes, slice by slice, with one network or the average of several."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from action.data.slice_file import Voxels
from action.data.volumes import LoadedCase, resize_to_native

OVERLAP = 0.5
"""Of neighbouring windows, as a share of their sides."""
FLIPS: tuple[tuple[int, ...], ...] = ((2,), (3,), (2, 3))
"""Axes of [N, C, H, W] that are flipped together, where predictions are averaged over mirrored slices."""


class Member(NamedTuple):
    """A network and the height and width of the window that it was trained on; smaller slices are padded."""

    network: nn.Module
    size: tuple[int, int]


@dataclass(frozen=True)
class Segmenter:
    """What makes labels of a volume: networks whose probabilities are averaged, and what is done to the result.

    A slice at a time leaves the networks, so that only labels grow with the volume.

    Args:
        members: the networks; each's mode is restored after every use.
        batch: windows in one forward pass.
        mirror: average over the four flips of every window.
        largest: class indices of which only the largest connected piece is kept.
    """

    members: Sequence[Member]
    batch: int
    mirror: bool = False
    largest: Collection[int] = ()

    def __post_init__(self) -> None:
        import_module("monai.inferers")  # a second that belongs neither to --help nor to the first volume's time

    def slices(self, image: Voxels) -> Iterator[Tensor]:
        """Class probabilities [C, H, W] of one slice after the other, float32 on the CPU.

        Args:
            image: [Z, channels, H, W] in [0, 1] at the networks' spacing.
        """
        for start in range(0, len(image), self.batch):
            part = torch.from_numpy(image[start : start + self.batch]).float()
            total = self._probabilities(self.members[0], part)
            for member in self.members[1:]:
                total = total + self._probabilities(member, part)
            yield from total / len(self.members) if len(self.members) > 1 else total

    @torch.inference_mode()
    def _probabilities(self, member: Member, slices: Tensor) -> Tensor:
        """Those of a window that slides over every slice [N, channels, H, W], averaged where windows overlap."""
        from monai.inferers import sliding_window_inference

        network = member.network
        training = network.training
        network.eval()
        result = sliding_window_inference(
            slices,
            roi_size=member.size,
            sw_batch_size=self.batch,
            predictor=_averaged(network, FLIPS if self.mirror else ()),
            overlap=OVERLAP,
            mode="gaussian",  # a window is surest in its middle
            sw_device=next(network.parameters()).device,
            device="cpu",
        )
        network.train(training)
        assert isinstance(result, Tensor)
        return result

    def segment(self, case: LoadedCase, probabilities: np.ndarray | None = None) -> np.ndarray:
        """Labels of a case on its file's own grid, uint8 [Z, Y, X].

        Args:
            case: the volume.
            probabilities: [C, Z, Y, X], filled with those that decided, before pieces are dropped.
        """
        labels = resize_to_native(self.slices(case.image), case.shape, case.box, probabilities)
        return keep_largest(labels, self.largest)


def segment(network: nn.Module, case: LoadedCase, size: tuple[int, int], batch: int) -> np.ndarray:
    """``Segmenter.segment`` with one network as it is."""
    return Segmenter([Member(network, size)], batch).segment(case)


def keep_largest(labels: np.ndarray, classes: Collection[int]) -> np.ndarray:
    """Labels [Z, Y, X] in which each of these classes is one connected piece: the largest, of equal ones the first.

    Voxels that touch in a face, an edge or a corner are connected. What is dropped becomes background.
    """
    labels = labels.copy() if classes else labels
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        if index not in classes or box is None:
            continue
        inside = labels[box]
        pieces, count = ndimage.label(inside == index, np.ones((3, 3, 3), bool))
        if count > 1:
            largest = 1 + int(np.bincount(pieces.ravel())[1:].argmax())
            inside[(pieces > 0) & (pieces != largest)] = 0
    return labels


def _averaged(network: nn.Module, flips: Sequence[tuple[int, ...]]) -> Callable[[Tensor], Tensor]:
    """Class probabilities of windows [N, channels, H, W]: the mean of what they give as they are and in each flip."""

    def probabilities(windows: Tensor) -> Tensor:
        total: Tensor = network(windows).logits.softmax(dim=1)
        for axes in flips:
            total = total + network(windows.flip(axes)).logits.softmax(dim=1).flip(axes)
        return total / (1 + len(flips)) if flips else total

    return probabilities
