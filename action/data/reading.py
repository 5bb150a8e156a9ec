"""Reading the files of a case, whatever kind they are of: NIfTI, a file for each channel, or HDF5."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from action.data import hdf5, nifti
from action.data.cases import Case
from action.data.nifti import Grid, Volume


def channels_of(case: Case) -> int:
    """Number of channels of the image; reads nothing."""
    return 1 if hdf5.is_hdf5(case.image) else len(case.images)


def read_channels(case: Case, *, narrow: bool = False) -> Iterator[Volume]:
    """The image's channels one after the other, float32 [Z, Y, X], all on the voxel grid of the first.

    ``narrow``: whole numbers of two bytes at most may stay what they are, see ``nifti.read_image``.

    Raises:
        InputError: see ``nifti.read_image``, ``nifti.check_contrast``, ``nifti.read_channel`` and ``hdf5.read_image``.
    """
    volume = hdf5.read_image(case.images) if hdf5.is_hdf5(case.image) else nifti.read_image(case.image, narrow=narrow)
    nifti.check_contrast(volume)
    # Of the first its shape is enough, so that one channel at a time is in memory.
    grid = replace(volume, array=np.broadcast_to(np.float32(0), volume.array.shape))
    yield volume
    del volume
    for path in case.others if channels_of(case) > 1 else ():
        channel = nifti.read_channel(path, grid, narrow=narrow)
        nifti.check_contrast(channel)
        yield channel


def read_label(case: Case, image: Volume, classes: int) -> np.ndarray | None:
    """Class indices uint8 [Z, Y, X] on the voxel grid of ``image``; ``None`` without a label file.

    Raises:
        InputError: see ``nifti.read_label`` and ``hdf5.read_label``.
    """
    if case.label is None:
        return None
    if hdf5.is_hdf5(case.label):
        return hdf5.read_label(case.images, image, classes)
    return nifti.read_label(case.label, image, classes).array


def read_grid(case: Case) -> Grid:
    """The grid of the image, without its voxels.

    Raises:
        InputError: see ``nifti.read_grid`` and ``hdf5.read_grid``.
    """
    return hdf5.read_grid(case.images) if hdf5.is_hdf5(case.image) else nifti.read_grid(case.image)


def check_headers(case: Case) -> None:
    """Refuse an image of which one can tell without its voxels that it cannot be read.

    Raises:
        InputError: see ``nifti.check_header`` and ``hdf5.read_grid``.
    """
    if hdf5.is_hdf5(case.image):
        hdf5.read_grid(case.images)
        return
    for path in case.images:
        nifti.check_header(path)
