"""HDF5 files of the public benchmark of semi-supervised learning: a volume in one file, or a file for each slice.

A file has the data sets ``image`` and ``label``, [Z, Y, X] of a volume or [Y, X] of a slice. Nothing in it says how
large a voxel is: it counts as 1, and lengths are in voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from action.data.nifti import Grid, Volume, check_finite, class_indices
from action.errors import InputError
from action.files import write_aside

SUFFIXES = (".h5", ".hdf5")
SPACING = (1.0, 1.0, 1.0)


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5, by its name."""
    return path.suffix.lower() in SUFFIXES


def read_image(paths: Sequence[Path]) -> Volume:
    """Read intensities as float32 [Z, Y, X], without a voxel size, from a volume's file or from its slices in order.

    Raises:
        InputError: h5py is not installed; a missing, damaged or other file; no ``image`` in it; slices of different
            extents; NaN or infinite voxels.
    """
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which is refused with the file's name
        array = np.ascontiguousarray(_stacked(paths, "image"), np.float32)
    check_finite(array, paths[0])
    return Volume(array, np.eye(4), nib.Nifti1Header(), SPACING, paths[0])


def read_label(paths: Sequence[Path], image: Volume, classes: int) -> np.ndarray:
    """Read the class indices of the same files as uint8 [Z, Y, X].

    Raises:
        InputError: no ``label`` in a file; another shape than the image; values that are not whole numbers in
            [0, classes).
    """
    array = _stacked(paths, "label")
    if array.shape != image.array.shape:
        raise InputError(
            f"{paths[0]}: 'label' is {_shown(array.shape)}, but 'image' {_shown(image.array.shape)}; they must match"
        )
    return class_indices(array, classes, paths[0], f"label of {paths[0]}")


def read_grid(paths: Sequence[Path]) -> Grid:
    """The grid of an image, without its voxels.

    Raises:
        InputError: as ``read_image``, as far as the first file shows it.
    """
    with _opened(paths[0]) as file:
        shape = _dataset(file, paths[0], "image").shape
    slices, rows, columns = shape if len(shape) == 3 else (len(paths), *shape)
    return Grid((slices, rows, columns), SPACING, None)


def has_label(path: Path) -> bool:
    """Whether a file has a label.

    Raises:
        InputError: h5py is not installed; a missing or damaged file.
    """
    with _opened(path) as file:
        return "label" in file


def write(path: Path, image: np.ndarray, label: np.ndarray | None) -> None:
    """Write a volume [Z, Y, X] or a slice [Y, X], aside and then renamed.

    Raises:
        InputError: h5py is not installed.
    """
    with write_aside(path) as aside, _library().File(aside, "w") as file:
        file.create_dataset("image", data=image, compression="gzip")
        if label is not None:
            file.create_dataset("label", data=label, compression="gzip")


def _stacked(paths: Sequence[Path], key: str) -> np.ndarray:
    """The data set ``key`` of a volume, or of its slices on top of each other."""
    arrays = []
    for path in paths:
        with _opened(path) as file:
            arrays.append(np.asarray(_dataset(file, path, key)[()]))
        if arrays[-1].shape != arrays[0].shape:
            raise InputError(
                f"{path}: '{key}' is {_shown(arrays[-1].shape)}, but {_shown(arrays[0].shape)} in {paths[0]}: slices "
                "of one volume must be of one size"
            )
    whole = arrays[0].ndim == 3
    if whole and len(paths) > 1:
        raise InputError(f"{paths[0]} holds a whole volume, but is named as one of {len(paths)} slices: rename it")
    return arrays[0] if whole else np.stack(arrays)


def _dataset(file: Any, path: Path, key: str) -> Any:
    found = file.get(key)
    shape = getattr(found, "shape", None)
    if shape is None:
        raise InputError(
            f"{path} has no data set '{key}', but {', '.join(map(repr, file)) or 'nothing'}: every file needs 'image' "
            "and, unless it is unlabelled, 'label'"
        )
    if len(shape) not in (2, 3) or not all(shape) or found.dtype.kind not in "iufb":
        raise InputError(
            f"{path}: '{key}' is {_shown(shape)} of type {found.dtype}: numbers [Z, Y, X] of a volume, or [Y, X] of a "
            "slice, are needed"
        )
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, open for reading; whatever the library raises becomes a sentence about it."""
    if not path.is_file():
        raise InputError(f"{path} is a folder: name the files in it" if path.is_dir() else f"{path} does not exist")
    library = _library()
    try:
        with library.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read as HDF5, it may be truncated or damaged ({reason})") from error


def _library() -> Any:
    try:
        import h5py
    except ImportError:
        raise InputError(
            "HDF5 files need the package h5py, which is not installed: pip install 'action-contrast[hdf5]' (in a "
            "checkout: pip install -e '.[hdf5]')"
        ) from None
    return h5py


def _shown(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
