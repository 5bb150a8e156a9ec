"""NIfTI files as arrays in slice order, with all that is needed to write a result back on the same grid."""

from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from action.data.notes import keeping, note
from action.data.orientation import Turn, directions_of
from action.data.unpacking import beginning, unpack
from action.errors import InputError
from action.files import write_aside

LARGEST = 2**31
"""Voxels, more than any scanner makes: a header that claims more is damaged."""
DEFLATE = 1032
"""Largest compression ratio of gzip, so that a file's size bounds what it holds."""
WHOLE = 1e-3
"""How far a label's value may lie from the whole number that it stands for."""
MILLIMETRES = {"meter": 1e3, "micron": 1e-3}
"""Length of the header's units, where they are not millimetres."""
_BEGIN = 2**12
"""Bytes of a file in which its header is looked for."""
PREDICTION = b"action labels"
"""Mark in the header (``intent_name``) of what ``write_label`` wrote, which is never read as an image."""


@dataclass(frozen=True)
class Volume:
    """A 3-D image with its geometry.

    Args:
        array: [Z, Y, X]; NIfTI stores x fastest, so this is the file's voxel array with its axes reversed.
        affine: [4, 4], maps the file's voxel indices (x, y, z, 1) to places in the header's units (mm, as a rule).
        header: the NIfTI header, kept for writing (codes, units, offsets).
        spacing: voxel size (z, y, x) in mm; 1 where the file has none.
        path: the file.
        turn: what ``array`` and ``spacing`` were turned by; ``affine`` and ``header`` are those of the stored axes.
    """

    array: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header
    spacing: tuple[float, float, float]
    path: Path
    turn: Turn = Turn()  # noqa: RUF009  frozen, so one may serve all

    @property
    def sized(self) -> bool:
        """Whether the file has a voxel size: without a unit, three times 1 is what a writer puts who knows none."""
        return self.spacing != (1.0, 1.0, 1.0) or self.header.get_xyzt_units()[0] != "unknown"

    def turned(self, turn: Turn) -> Volume:
        """This stored volume with its axes in another order and direction; ``write_label`` turns back."""
        return replace(self, array=turn.apply(self.array), spacing=turn.sizes(self.spacing), turn=turn)


def read_image(path: Path | str, *, narrow: bool = False) -> Volume:
    """Read intensities as float32 [Z, Y, X].

    ``narrow``: leave whole numbers of one or two bytes, which the header does not scale, as they are stored. float32
    has the same values in two to four times the memory.

    Raises:
        InputError: missing, truncated or unreadable file; not 3-D (further axes of length 1 are dropped); an empty
            axis; NaN or infinite voxels; a voxel size that is not positive; a prediction.
    """
    volume = _read(Path(path), np.float32, narrow=narrow)
    _check_intent(volume.header, path)
    check_finite(volume.array, path)
    return volume


def check_header(path: Path | str) -> None:
    """Refuse a file whose header alone tells that ``read_image`` will.

    Raises:
        InputError: as ``read_grid``; a prediction.
    """
    read_grid(path)
    with _named(path):
        header = _open(Path(path)).image.header
    _check_intent(header, path)


def _check_intent(header: nib.Nifti1Header, path: Path | str) -> None:
    if header["intent_name"].item() == PREDICTION:
        raise InputError(f"{path} is a prediction that this program wrote, not an image: give the image itself")


def check_finite(array: np.ndarray, path: Path | str) -> None:
    """Refuse intensities that are no numbers.

    Raises:
        InputError: NaN or infinite voxels.
    """
    if array.dtype.kind in "iu":
        return
    bad = array.size - sum(np.count_nonzero(np.isfinite(slice_)) for slice_ in array)
    if bad:
        raise InputError(
            f"{path}: {bad} of {array.size} voxels are NaN or infinite, or too large for float32; repair or remove it"
        )


def check_contrast(image: Volume) -> None:
    """Refuse an image in which there is nothing to be seen.

    Raises:
        InputError: all voxels have the same value.
    """
    low = image.array.min()
    if low == image.array.max():
        raise InputError(f"{image.path}: every voxel is {low:g}, there is no image in it: replace or remove it")


def read_channel(path: Path | str, image: Volume, *, narrow: bool = False) -> Volume:
    """Read another channel of ``image`` on its voxel grid, matched as a label's is; ``narrow`` as in ``read_image``.

    Raises:
        InputError: as ``read_image``; another shape than the image, or a place more than half its extent away.
    """
    volume = _on_grid(read_image(path, narrow=narrow), image, "channel")
    _compare_places(volume, image, "channel")
    return replace(volume, affine=image.affine, header=image.header, spacing=image.spacing)


def read_label(path: Path | str, image: Volume, classes: int) -> Volume:
    """Read class indices as uint8 [Z, Y, X] and lays them on the voxel grid of ``image``.

    Values within a thousandth of a whole number are rounded, with a warning. Labels whose affine is that of the image
    with axes flipped or exchanged are stored in another order, and are put into the image's. Some public label files
    carry a wrong or identity affine: labels are drawn voxel by voxel, so equal shapes are matched by voxel then; the
    difference is warned about and the image's geometry is kept.

    Raises:
        InputError: as ``read_image``; another shape than the image, or a place more than half its extent away; values
            that are not whole numbers in [0, classes).
    """
    volume = _on_grid(_read(Path(path), None), image, "label")
    indices = class_indices(volume.array, classes, Path(path), f"label {path} of image {image.path}")
    _compare_places(volume, image, "label")
    return Volume(indices, image.affine, image.header, image.spacing, volume.path)


def class_indices(array: np.ndarray, classes: int, path: Path, what: str) -> np.ndarray:
    """Values of a label as uint8; those within a thousandth of a whole number are rounded, with a warning.

    Args:
        array: the values.
        classes: number of classes.
        path: of the label.
        what: names it in the error.

    Raises:
        InputError: values that are not whole numbers in [0, classes).
    """
    if array.dtype.kind in "iu" and array.min() >= 0 and array.max() < classes:
        return array.astype(np.uint8, copy=False)
    values = np.unique(array)
    if array.dtype.kind == "f" and (values != np.rint(values)).any() and (abs(values - np.rint(values)) <= WHOLE).all():
        note(f"{path}: label values next to whole numbers, such as {_odd(values)!r}, rounded")
        array = np.rint(array)
        values = np.unique(array)
    unknown = [f"{value:g}" for value in values if not (0 <= value < classes and value == np.rint(value))]
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise InputError(
            f"{what} has unknown values {shown}: the {classes} classes are 0..{classes - 1}; name all of them in "
            "dataset.json, or correct the label"
        )
    indices: np.ndarray = array.astype(np.uint8)
    return indices


def label_values(path: Path | str) -> frozenset[float]:
    """The values that a label file has, those next to whole numbers rounded.

    Raises:
        InputError: as ``read_image``.
    """
    values = np.unique(_read(Path(path), None).array).astype(float)
    near = np.abs(values - np.rint(values)) <= WHOLE
    return frozenset(float(value) for value in np.where(near, np.rint(values), values))


class Grid(NamedTuple):
    """Where the voxels of an image lie.

    Attributes:
        shape: voxels (z, y, x).
        spacing: voxel size (z, y, x) in mm.
        directions: [3, 3] as in ``orientation``; ``None`` where the header gives neither sform nor qform.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    directions: np.ndarray | None


def read_grid(path: Path | str) -> Grid:
    """The grid of an image, from its header alone. What is odd about it is said when the image is read.

    Raises:
        InputError: missing or unreadable file, a geometry that cannot be, or fewer than three dimensions.
    """
    path = Path(path)
    _check_file(path)
    with _named(path), keeping():
        image, written = _open(path)
        spacing = _spacing(image, written, path)
    if len(image.shape) < 3:
        raise InputError(f"{path} has {len(image.shape)} dimensions; a 3-D image is needed")
    x, y, z = image.shape[:3]
    return Grid((z, y, x), spacing, known_directions(image.header, image.affine))


def known_directions(header: nib.Nifti1Header, affine: np.ndarray) -> np.ndarray | None:
    """Direction matrix [3, 3] of an affine, ``None`` where the header gives neither sform nor qform."""
    return directions_of(affine) if _gives_place(header) else None


def write_label(path: Path | str, array: np.ndarray, like: Volume) -> None:
    """Write class indices [Z, Y, X] as uint8 NIfTI on the grid of ``like`` as it is stored: same affine, sform, qform.

    The header says that these are predicted labels (``PREDICTION``).
    The file is written aside and renamed, so that a file of this name is always whole.
    """
    header = like.header.copy()
    header["intent_name"] = PREDICTION
    write_volume(path, like.turn.undo(np.asarray(array, np.uint8)), like.affine, header)


def is_prediction(path: Path | str) -> bool:
    """Whether ``write_label`` wrote this file, from its header alone; ``False`` for a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rb") as file:
            header = file.read(540)
    except (OSError, EOFError, zlib.error):
        return False
    return any(header[place : place + 16].rstrip(b"\0") == PREDICTION for place in (328, 508))  # NIfTI 1 and 2


def write_volume(path: Path | str, array: np.ndarray, affine: np.ndarray, header: nib.Nifti1Header | None) -> None:
    """Write ``array`` [Z, Y, X] in its own data type, aside and then renamed.

    ``header`` gives codes and units; without one the affine is written as that of a scanner, in mm.
    """
    version2 = isinstance(header, nib.Nifti2Header)
    image = (nib.Nifti2Image if version2 else nib.Nifti1Image)(array.transpose(2, 1, 0), affine, header)
    image.set_data_dtype(array.dtype)
    if header is None:
        image.set_qform(affine, code="scanner")
        image.set_sform(affine, code="scanner")
        image.header.set_xyzt_units("mm")
    image.header["cal_min"] = image.header["cal_max"] = 0  # a display window, which was meant for other data
    with write_aside(Path(path)) as aside:
        nib.save(image, aside)


def _read(path: Path, dtype: type[np.float32] | None, *, narrow: bool = False) -> Volume:
    """``dtype``: of the voxels; ``None``: as they are stored, or scaled to. ``narrow``: as in ``read_image``."""
    _check_file(path)
    with _named(path):
        image, written = _open(path)
        spacing = _spacing(image, written, path)
        kept = narrow and _unscaled(image) and image.dataobj.dtype.kind in "iu" and image.dataobj.dtype.itemsize <= 2
        array = _voxels(image, path, None if kept else dtype)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or array.size == 0:
        raise InputError(f"{path} has {' x '.join(map(str, array.shape))} voxels: a 3-D volume is needed")
    return Volume(np.ascontiguousarray(array.transpose(2, 1, 0)), image.affine, image.header, spacing, path)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path} is a folder: name the images in it" if path.is_dir() else f"{path} does not exist")


class _Opened(NamedTuple):
    """A file with its header checked; its voxels are not read yet.

    Attributes:
        image: as nibabel has it. Of a gzip file its ``dataobj`` holds the header alone, see ``_voxels``.
        pixdim: [3] sizes along x, y, z as they stand in the file, where nibabel itself takes a zero for 1 mm.
    """

    image: nib.Nifti1Pair
    pixdim: np.ndarray


def _open(path: Path) -> _Opened:
    with path.open("rb", buffering=0) as file:
        begin, size = file.read(_BEGIN), os.fstat(file.fileno()).st_size
    packed = begin[:2] == b"\x1f\x8b"
    _check_suffix(path, packed, size)
    single = packed and path.name.lower().endswith(".nii.gz")
    image = (_image_of(beginning(begin, _BEGIN)) if single else None) or nib.load(path)
    if not isinstance(image, nib.Nifti1Pair):
        raise ValueError("not a NIfTI file")
    if not isinstance(image, nib.Nifti1Image):  # the voxels have a file of their own
        size = Path(image.file_map["image"].filename).stat().st_size
    _check_header(image, path, size)
    return _Opened(image, _written(image))


def _image_of(begin: bytes) -> nib.Nifti1Image | None:
    """The image of a file that begins like this, as far as a header goes: nibabel by itself opens a file three times.

    ``None`` for what is left to nibabel: other kinds, and headers with extensions, which may be of any length.
    """
    kind = nib.Nifti1Header
    length = kind.template_dtype.itemsize
    if len(begin) <= length or begin[length] != 0 or not kind.may_contain_header(begin[:length]):
        return None
    return nib.Nifti1Image.from_stream(io.BytesIO(begin))


def _written(image: nib.Nifti1Pair) -> np.ndarray:
    with image.file_map.get("header", image.file_map["image"]).get_prepare_fileobj("rb") as file:
        written: np.ndarray = type(image.header).from_fileobj(file, check=False)["pixdim"][1:4].astype(float)
    return written


@contextmanager
def _named(path: Path | str) -> Iterator[None]:
    """Turn whatever the libraries raise on a damaged file into a sentence about that file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # nibabel, zlib and NumPy have no common class, and name no file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read as NIfTI, it may be truncated or damaged ({reason})") from error


def _check_suffix(path: Path, packed: bool, size: int) -> None:
    """nibabel goes by the name.

    Raises:
        ValueError: the name says that the file is compressed and it is not, or the reverse.
    """
    if packed and path.suffix.lower() == ".nii":
        raise ValueError("it is compressed: let its name end in .nii.gz")
    if not packed and path.suffix.lower() == ".gz" and size:
        raise ValueError("it is not a gzip file: if it is plain NIfTI, let its name end in .nii")


def _check_header(image: nib.Nifti1Pair, path: Path, size: int) -> None:
    """Refuse what cannot be true before anything is allocated for it.

    ``size``: of the file with the voxels, in bytes.

    Raises:
        InputError: the affine.
        ValueError: anything else; see the message.
    """
    dtype, shape = image.get_data_dtype(), image.shape
    if dtype.kind not in "iuf":
        raise ValueError(f"voxels of type {dtype} are not numbers")
    if min(shape, default=0) < 0 or math.prod(shape) > LARGEST:
        raise ValueError(f"the header claims {' x '.join(map(str, shape))} voxels")
    if math.prod(shape) * dtype.itemsize > DEFLATE * size:
        raise ValueError(f"the header claims {' x '.join(map(str, shape))} voxels, more than the file can hold")
    if isinstance(image, nib.Nifti1Image) and image.dataobj.offset < image.header.single_vox_offset:
        raise ValueError(f"vox_offset {image.dataobj.offset} lies within the header")
    lengths, axes = np.linalg.norm(image.affine[:3, :3], axis=0), image.affine[:3, :3]
    sound = np.isfinite(image.affine).all() and lengths.min() > 1e-9 and lengths.max() < 1e9
    if not sound or abs(np.linalg.det(axes / lengths)) < 1e-6:  # the volume of a voxel whose edges are 1
        shown = np.array2string(image.affine[:3], precision=4, separator=",").replace("\n", "")
        raise InputError(f"{path}: the affine {shown} is not a valid geometry; repair the sform or qform in its header")


def _voxels(image: nib.Nifti1Pair, path: Path, dtype: type[np.float32] | None) -> np.ndarray:
    """The array, in this machine's order of bytes; a gzip file is read to its end, where its checksum is compared."""
    if path.suffix.lower() != ".gz" or not isinstance(image, nib.Nifti1Image):
        return _values(image, dtype)
    proxy = image.dataobj
    content = unpack(path, proxy.offset + math.prod(proxy.shape) * proxy.dtype.itemsize)
    if not _unscaled(image):
        return _values(type(image).from_stream(io.BytesIO(content.data)), dtype)
    array = np.ndarray(proxy.shape, proxy.dtype, content, proxy.offset, order="F")
    with np.errstate(over="ignore"):
        return array.astype(dtype or proxy.dtype.newbyteorder("="), copy=False)


def _values(source: nib.Nifti1Pair, dtype: type[np.float32] | None) -> np.ndarray:
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which is refused with the file's name
        if dtype is not None:
            converted: np.ndarray = source.get_fdata(caching="unchanged", dtype=dtype)
            return converted
        array = np.asanyarray(source.dataobj)
        if isinstance(array, np.memmap):
            array = np.array(array)  # a file may change under its window
        native: np.ndarray = array.astype(array.dtype.newbyteorder("="), copy=False)
        return native


def _unscaled(image: nib.Nifti1Pair) -> bool:
    """Whether the header leaves the stored numbers as they are."""
    return bool((image.dataobj.slope, image.dataobj.inter) == (1, 0))


def _spacing(image: nib.Nifti1Pair, pixdim: np.ndarray, path: Path) -> tuple[float, float, float]:
    """Voxel size (z, y, x) in mm: that of the affine, with a warning where ``pixdim`` says otherwise.

    Raises:
        InputError: ``pixdim`` as it stands in the file is not positive.
    """
    written = np.abs(pixdim)
    if not (np.isfinite(written) & (written > 0)).all():
        size = tuple(float(x) for x in written[::-1])
        raise InputError(f"{path}: voxel size {size} mm (z, y, x) must be positive; repair 'pixdim' in its header")
    size = voxel_sizes(image.affine)
    if not np.allclose(written, size, rtol=0.01):
        note(f"{path}: 'pixdim' says voxels of {_triple(written)}, its affine {_triple(size)}: the affine is taken")
    qform, sform = (getattr(image, f"get_{name}")(coded=True) for name in ("qform", "sform"))
    if qform[1] and sform[1] and not np.allclose(qform[0], sform[0], rtol=1e-3, atol=0.01 * size.min()):
        note(f"{path}: its qform and its sform are different places: the sform is taken")
    z, y, x = (float(length) for length in size[::-1] * _unit(image.header))
    return z, y, x


def _unit(header: nib.Nifti1Header) -> float:
    """Millimetres in a unit of the header's lengths."""
    return MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)


def _on_grid(volume: Volume, image: Volume, what: str) -> Volume:
    """A label or another channel in the image's order of axes.

    Raises:
        InputError: another shape than the image.
    """
    volume = _in_order(volume, image)
    if volume.array.shape != image.array.shape:
        raise InputError(
            f"{what} {volume.path} has {_size(volume.array)} voxels but image {image.path} has {_size(image.array)}; "
            "they must match"
        )
    return volume


def _compare_places(volume: Volume, image: Volume, what: str) -> None:
    """Say that a label or another channel, of the image's shape, lies elsewhere than the image.

    Raises:
        InputError: it lies so far away that it is another image's, or has a wrong header.
    """
    if _same_place(volume.affine, _unit(volume.header), image):
        return
    # Writers who do not know the place put no code, or the origin.
    if _gives_place(image.header) and _gives_place(volume.header) and volume.affine[:3, 3].any():
        centre, extents = _box(image)
        shift = _box(volume)[0] - centre
        along = np.abs(directions_of(image.affine).T @ shift)  # the image's axes
        if (along > extents / 2).any():
            raise InputError(
                f"{what} {volume.path} lies {np.linalg.norm(shift):.0f} mm from image {image.path} "
                f"({', '.join(f'{length:+.0f}' for length in shift)}), which is {_triple(extents)} mm large: give the "
                f"{what} of this image; if it is that, and voxels match, copy the image's affine into its header"
            )
    note(f"{volume.path}: affine differs from its image's; matched voxel by voxel")


def _gives_place(header: nib.Nifti1Header) -> bool:
    return bool(header["sform_code"] > 0 or header["qform_code"] > 0)


def _box(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Centre in the scanner's coordinates, and extent along the stored axes, of a volume in mm."""
    shape, unit = np.array(volume.array.shape[::-1]), _unit(volume.header)
    centre = volume.affine[:3] @ [*(shape - 1) / 2, 1] * unit
    return centre, shape * np.linalg.norm(volume.affine[:3, :3], axis=0) * unit


def _in_order(label: Volume, image: Volume) -> Volume:
    """A volume in the image's order of axes and directions, if their affines say that it is stored in another."""
    unit = _unit(label.header)
    if _same_place(label.affine, unit, image):
        return label
    orientation = nib.orientations.io_orientation
    change = nib.orientations.ornt_transform(orientation(label.affine), orientation(image.affine))
    stored = label.array.transpose(2, 1, 0)
    affine = label.affine @ nib.orientations.inv_ornt_aff(change, stored.shape)
    moved = nib.orientations.apply_orientation(stored, change).transpose(2, 1, 0)
    if moved.shape != image.array.shape or not _same_place(affine, unit, image):
        return label
    note(f"{label.path}: stored in another order than its image; put into that one")
    return Volume(np.ascontiguousarray(moved), affine, label.header, image.spacing, label.path)


def _same_place(affine: np.ndarray, unit: float, image: Volume) -> bool:
    """Whether an affine in units of ``unit`` mm is the image's."""
    return np.allclose(affine[:3] * unit, image.affine[:3] * _unit(image.header), rtol=1e-4, atol=1e-2)


def _odd(values: np.ndarray) -> float:
    return float(values[values != np.rint(values)][0])


def _triple(lengths: np.ndarray) -> str:
    return " x ".join(f"{length:.4g}" for length in lengths)


def _size(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape[::-1]))
