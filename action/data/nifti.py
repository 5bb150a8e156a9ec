"""NIfTI files as arrays in slice order, with all that is needed to write a result back on the same grid."""

from __future__ import annotations

import gzip
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from action.errors import InputError
from action.files import write_aside

_READ_ERRORS = (OSError, EOFError, ValueError, TypeError, zlib.error, nib.filebasedimages.ImageFileError)
PREDICTION = b"action labels"
"""Mark in the header (`intent_name`) of what `write_label` wrote, which is never read as an image."""


@dataclass(frozen=True)
class Volume:
    """A 3-D image with its geometry.

    Args:
        array: [Z, Y, X]; NIfTI stores x fastest, so this is the file's voxel array with its axes reversed.
        affine: [4, 4], maps the file's voxel indices (x, y, z, 1) to millimetres.
        header: the NIfTI header, kept for writing (codes, units, offsets).
        spacing: voxel size (z, y, x) in mm.
        path: the file.
    """

    array: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header
    spacing: tuple[float, float, float]
    path: Path


def read_image(path: Path | str) -> Volume:
    """Reads intensities as float32 [Z, Y, X].

    Raises:
        InputError: missing, truncated or unreadable file; not 3-D (a fourth axis of length 1 is dropped); an empty
            axis; NaN or infinite voxels; a voxel size that is not positive; a prediction.
    """
    volume = _read(Path(path), np.float32)
    if volume.header["intent_name"].item() == PREDICTION:
        raise InputError(f"{path} is a prediction that this program wrote, not an image: give the image itself")
    bad = volume.array.size - np.count_nonzero(np.isfinite(volume.array))
    if bad:
        raise InputError(f"{path}: {bad} of {volume.array.size} voxels are NaN or infinite; repair or remove it")
    return volume


def check_contrast(image: Volume) -> None:
    """Refuses an image in which there is nothing to be seen.

    Raises:
        InputError: all voxels have the same value.
    """
    low = image.array.min()
    if low == image.array.max():
        raise InputError(f"{image.path}: every voxel is {low:g}, there is no image in it: replace or remove it")


def read_label(path: Path | str, image: Volume, classes: int) -> Volume:
    """Reads class indices as uint8 [Z, Y, X] and lays them on the voxel grid of `image`.

    Some public label files carry a wrong or identity affine. Labels are drawn voxel by voxel, so equal shapes are
    matched by voxel; an affine that differs is warned about and the image's geometry is kept.

    Raises:
        InputError: as `read_image`; another shape than the image; values that are not whole numbers in [0, classes).
    """
    volume = _read(Path(path), None)
    array = volume.array
    if array.shape != image.array.shape:
        raise InputError(
            f"label {path} has {_size(array)} voxels but image {image.path} has {_size(image.array)}; they must match"
        )
    values = np.unique(array)
    unknown = [f"{value:g}" for value in values if not (0 <= value < classes and value == np.rint(value))]
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise InputError(
            f"label {path} of image {image.path} has unknown values {shown}: the {classes} classes are 0..{classes - 1}"
        )
    if not np.allclose(volume.affine, image.affine, rtol=1e-4, atol=1e-2):
        warnings.warn(f"{path}: affine differs from that of {image.path}; matched voxel by voxel", stacklevel=2)
    return Volume(array.astype(np.uint8), image.affine, image.header, image.spacing, volume.path)


def slice_size(path: Path | str) -> tuple[int, int]:
    """Height and width (Y, X) of an image's slices, from its header alone.

    Raises:
        InputError: missing or unreadable file, or fewer than two dimensions.
    """
    try:
        shape = nib.load(path).shape
    except _READ_ERRORS as error:
        raise InputError(f"{path} is not a readable NIfTI file ({error}); repair or remove it") from error
    if len(shape) < 2:
        raise InputError(f"{path} has {len(shape)} dimensions; a 3-D image is needed")
    return shape[1], shape[0]


def write_label(path: Path | str, array: np.ndarray, like: Volume) -> None:
    """Writes class indices [Z, Y, X] as uint8 NIfTI on the grid of `like`: same affine, sform and qform codes.

    The header says that these are predicted labels (`PREDICTION`).
    The file is written aside and renamed, so that a file of this name is always whole.
    """
    header = like.header.copy()
    header["intent_name"] = PREDICTION
    write_volume(path, np.asarray(array, np.uint8), like.affine, header)


def is_prediction(path: Path | str) -> bool:
    """Whether `write_label` wrote this file, from its header alone; `False` of a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rb") as file:
            header = file.read(540)
    except _READ_ERRORS:
        return False
    return any(header[place : place + 16].rstrip(b"\0") == PREDICTION for place in (328, 508))  # NIfTI 1 and 2


def write_volume(path: Path | str, array: np.ndarray, affine: np.ndarray, header: nib.Nifti1Header | None) -> None:
    """Writes `array` [Z, Y, X] in its own data type, aside and then renamed.

    `header` gives codes and units; without one the affine is written as that of a scanner, in mm.
    """
    version2 = isinstance(header, nib.Nifti2Header)
    image = (nib.Nifti2Image if version2 else nib.Nifti1Image)(array.transpose(2, 1, 0), affine, header)
    image.set_data_dtype(array.dtype)
    if header is None:
        image.set_qform(affine, code="scanner")
        image.set_sform(affine, code="scanner")
        image.header.set_xyzt_units("mm")
    image.header["cal_min"] = image.header["cal_max"] = 0  # a display window for other data than these
    with write_aside(Path(path)) as aside:
        nib.save(image, aside)


def _read(path: Path, dtype) -> Volume:
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair):
            raise ValueError("not a NIfTI file")
        array = np.asanyarray(image.dataobj) if dtype is None else image.get_fdata(caching="unchanged", dtype=dtype)
        if array.dtype.kind not in "iuf":
            raise ValueError(f"voxels of type {array.dtype} are not numbers")
    except _READ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read as NIfTI, it may be truncated or damaged ({reason})") from error
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim != 3 or array.size == 0:
        raise InputError(f"{path} has {' x '.join(map(str, array.shape))} voxels: a 3-D volume is needed")
    spacing = tuple(float(size) for size in _voxel_size(image)[::-1])
    if not all(np.isfinite(size) and size > 0 for size in spacing):
        raise InputError(f"{path}: voxel size {spacing} mm (z, y, x) must be positive; repair 'pixdim' in its header")
    return Volume(np.ascontiguousarray(array.transpose(2, 1, 0)), image.affine, image.header, spacing, path)


def _voxel_size(image: nib.Nifti1Pair) -> np.ndarray:
    """(x, y, z) as it stands in the file: nibabel itself takes a zero for 1 mm."""
    with image.file_map.get("header", image.file_map["image"]).get_prepare_fileobj("rb") as file:
        return np.abs(type(image.header).from_fileobj(file, check=False)["pixdim"][1:4])


def _size(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape[::-1]))
