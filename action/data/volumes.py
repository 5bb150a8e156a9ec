"""From files to volumes at network size and back to the file's own grid."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from action.data.cases import Case, raise_problems
from action.data.nifti import Volume, read_image, read_label
from action.errors import InputError

HU_RANGE = (-200.0, 250.0)
"""Window of soft tissue in Hounsfield units."""
AIR_HU = -500.0
"""Values below it occur in CT (air, lung) and not in MRI."""
INTENSITIES = ("auto", "minmax", "hu")


@dataclass
class LoadedCase:
    """A case in memory.

    Args:
        name, patient: as in `Case`.
        image: float16 [Z, H, W] in [0, 1] at network size: finer than the noise, in half the memory of float32.
        label: uint8 [Z, H, W] at network size, `None` without a label file.
        truth: uint8 [Z, Y, X] on the file's grid, `None` without a label file and in training, which never reads it.
        spacing: voxel size (z, y, x) of the file's grid in mm.
        volume: geometry for writing; its array is empty, its shape is `shape`.
        shape: (Z, Y, X) of the file's grid.
    """

    name: str
    patient: str
    image: np.ndarray
    label: np.ndarray | None
    truth: np.ndarray | None
    spacing: tuple[float, float, float]
    volume: Volume
    shape: tuple[int, int, int]


def scale_intensity(array: np.ndarray, intensity: str) -> np.ndarray:
    """Intensities as float32 in [0, 1].

    `minmax`: minimum and maximum of the volume (a constant volume becomes 0). `hu`: CT, clipped to [-200, 250] HU.
    `auto`: `hu` where values below -500 occur, which are air in Hounsfield units, otherwise `minmax`.

    Raises:
        InputError: another `intensity`.
    """
    if intensity not in INTENSITIES:
        raise InputError(f"unknown intensity scaling '{intensity}': choose one of {', '.join(INTENSITIES)}")
    low, high = float(array.min()), float(array.max())
    if intensity == "hu" or (intensity == "auto" and low < AIR_HU):
        low, high = HU_RANGE
    if high <= low:
        return np.zeros(array.shape, np.float32)
    scaled = (array.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0, 1, out=scaled)


def load_case(
    case: Case, classes: int, size: tuple[int, int], intensity: str, *, keep_truth: bool = True
) -> LoadedCase:
    """Reads and verifies a case and brings its slices to `size` (H, W): image bilinear, label nearest.

    `keep_truth`: whether the labels on the file's own grid are kept beside them.

    Raises:
        InputError: see `read_image`, `read_label`, `scale_intensity`.
    """
    volume = read_image(case.image)
    truth = None if case.label is None else read_label(case.label, volume, classes).array
    image = _resize(scale_intensity(volume.array, intensity), size, mode="bilinear", antialias=True)
    label = None if truth is None else _resize(truth, size, mode="nearest-exact")
    shape = volume.array.shape
    geometry = replace(volume, array=np.empty((0, 0, 0), np.float32))  # gives the native voxels' memory back
    truth = truth if keep_truth else None
    return LoadedCase(case.name, case.patient, image.astype(np.float16), label, truth, volume.spacing, geometry, shape)


def load_cases(
    cases: Sequence[Case],
    classes: int,
    size: tuple[int, int],
    intensity: str,
    *,
    training: Collection[str] = (),
    progress: bool = False,
) -> list[LoadedCase]:
    """`load_case` of all `cases`, in their order; `progress` shows a bar.

    `training`: patients who are never evaluated, so that their labels on the file's own grid need not be kept.

    Raises:
        InputError: the problems of all files in one message.
    """
    loaded, problems = [], []
    for case in tqdm(cases, desc="reading", unit="volume", disable=not progress, leave=False):
        try:
            keep_truth = case.patient not in training
            loaded.append(load_case(case, classes, size, intensity, keep_truth=keep_truth))
        except InputError as error:
            problems.append(str(error))
    raise_problems(problems, "the data set")
    return loaded


def resize_to_native(probabilities: torch.Tensor | np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Class probabilities [C, Z, H, W] at network size to uint8 labels of `shape` (Z, Y, X).

    Probabilities are interpolated (bilinear), then the largest one is taken: smoother outlines than resized labels.
    """
    probabilities = torch.as_tensor(probabilities)
    if probabilities.ndim != 4 or probabilities.shape[1] != shape[0]:
        raise ValueError(f"probabilities must be [C, Z={shape[0]}, H, W], got {tuple(probabilities.shape)}")
    labels = np.empty(shape, np.uint8)
    for z in range(shape[0]):  # by slice: the native map of all slices and classes would be large
        slice_ = probabilities[None, :, z].float()
        if slice_.shape[2:] != shape[1:]:
            slice_ = F.interpolate(slice_, size=shape[1:], mode="bilinear", align_corners=False)
        labels[z] = slice_[0].argmax(0).to(torch.uint8).cpu().numpy()
    return labels


def _resize(array: np.ndarray, size: tuple[int, int], **options) -> np.ndarray:
    if array.shape[1:] == tuple(size):
        return array
    resized = F.interpolate(torch.from_numpy(array)[:, None].float(), size=tuple(size), **options)
    return resized[:, 0].numpy().astype(array.dtype)
