"""Damaged and odd NIfTI files: a sound volume or a sentence that names the file, whatever the bytes."""

import gzip
import struct
import warnings

import nibabel as nib
import numpy as np
import pytest

from action.data.nifti import read_image, read_label
from action.errors import InputError

AFFINE = np.array([[1.5, 0, 0, -48], [0, 1.25, 0, -40], [0, 0, 8.0, -16], [0, 0, 0, 1]])
SHAPE = (7, 6, 3)  # x, y, z


def voxels(dtype=np.int16):
    return np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)


def save(path, array=None, affine=AFFINE, unit="mm", kind=nib.Nifti1Image):
    image = kind(voxels() if array is None else array, affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


def patched(path, places):
    """Bytes of the header replaced: {offset: (format, values)}."""
    content = bytearray(path.read_bytes())
    for place, (form, *values) in places.items():
        struct.pack_into("<" + form, content, place, *values)
    path.write_bytes(content)
    return path


NAN = float("nan")
REFUSED = {
    "unknown data type": {70: ("hh", 9999, 16)},
    "binary data type": {70: ("hh", 1, 1)},
    "gigantic": {40: ("hhhh", 3, 32767, 32767, 32767)},
    "larger than the file": {40: ("hhhh", 3, 700, 600, 300)},
    "negative extent": {40: ("hhhh", 3, 7, -6, 3)},
    "too many dimensions": {40: ("h", 9)},
    "intercept NaN": {112: ("ff", 1.0, NAN)},
    "data within the header": {108: ("f", 0.0)},
    "data offset NaN": {108: ("f", NAN)},
    "affine NaN": {280: ("f", NAN)},
    "affine infinite": {280: ("f", float("inf"))},
    "affine singular": {280: ("ffff", 0, 0, 0, 0)},
    "axes in one plane": {280: ("fff", 1, 1, 0), 296: ("fff", 1, 1, 0)},
    "voxel size NaN": {80: ("f", NAN)},
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("places", REFUSED.values(), ids=REFUSED.keys())
def test_a_hostile_header_is_a_sentence(places, packed, tmp_path):
    path = patched(save(tmp_path / "a.nii"), places)
    if packed:
        path = tmp_path / "a.nii.gz"
        path.write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    with pytest.raises(InputError, match=path.name.replace(".", r"\.")):
        read_image(path)


def test_a_gzip_stream_is_read_to_its_end(tmp_path):
    path = save(tmp_path / "a.nii.gz")
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-8] + b"\0\0\0\0" + whole[-4:], whole[:-4] + b"\0\0\0\1"):  # end, CRC, length
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.nii\.gz cannot be read"):
            read_image(path)
    content = gzip.decompress(whole)
    path.write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    assert np.array_equal(read_image(path).array, voxels().T)


@pytest.mark.parametrize("shape_at", [40, 42, 44])
def test_one_wrong_byte_of_the_shape_allocates_nothing(shape_at, tmp_path):
    path = patched(save(tmp_path / "a.nii"), {shape_at: ("h", 32000)})
    with pytest.raises(InputError, match=r"a\.nii"):
        read_image(path)


def test_thousands_of_mutations(tmp_path):
    rng = np.random.default_rng(1)
    sources = []
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        for dtype in (np.int16, np.float32, np.uint8):
            sources.append(save(tmp_path / "source.nii", voxels(dtype), kind=kind).read_bytes())
    read = 0
    for number in range(3000):
        content = bytearray(sources[number % len(sources)])
        reach = len(content) if number % 3 == 0 else 600  # the header for the most part
        for place in rng.integers(0, min(reach, len(content)), rng.integers(1, 5)):
            content[place] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        if number % 5 == 0:
            content = content[: rng.integers(len(content) + 1)]
        path = tmp_path / ("mutant.nii.gz" if number % 2 else "mutant.nii")
        content = bytearray(gzip.compress(bytes(content), 1)) if number % 2 else content
        if number % 7 == 0 and content:
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                volume = read_image(path)
            except InputError as error:
                assert path.name in str(error)  # noqa: PT017  many of them can be read
                continue
        read += 1
        assert volume.array.ndim == 3 and np.isfinite(volume.array).all() and min(volume.spacing) > 0
        assert np.isfinite(volume.affine).all() and volume.array.nbytes < 2**20
    assert 500 < read < 2900  # some mutations matter, some do not


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1.0), ("micron", 1000.0), ("meter", 0.001), ("unknown", 1.0)])
def test_the_units_of_the_header_count(unit, factor, tmp_path):
    path = save(tmp_path / "a.nii", affine=np.diag([*np.diag(AFFINE)[:3] * factor, 1]), unit=unit)
    assert read_image(path).spacing == pytest.approx((8.0, 1.25, 1.5))


def test_voxel_sizes_that_disagree_are_named(tmp_path):
    path = patched(save(tmp_path / "a.nii"), {80: ("f", 3.0)})
    with pytest.warns(UserWarning, match=r"a\.nii: 'pixdim' says voxels of 3 x 1.25 x 8, its affine 1.5 x 1.25 x 8"):
        assert read_image(path).spacing == pytest.approx((8.0, 1.25, 1.5))


def test_two_places_of_one_volume_are_named(tmp_path):
    image = nib.Nifti1Image(voxels(), AFFINE)
    mirrored = AFFINE.copy()
    mirrored[0] *= -1
    image.set_qform(mirrored, code=1)
    image.set_sform(AFFINE, code=2)
    nib.save(image, tmp_path / "a.nii")
    with pytest.warns(UserWarning, match="its qform and its sform are different places"):
        read_image(tmp_path / "a.nii")


@pytest.mark.parametrize("order", [[0, -1], [1, -1], [2, -1], "xy", "yzx"], ids=str)
def test_labels_stored_in_another_order_are_put_into_the_images(order, tmp_path):
    label = (voxels() % 4).astype(np.uint8)
    image = read_image(save(tmp_path / "image.nii"))
    change = np.array([[0, 1], [1, 1], [2, 1]])
    if order == "xy":
        change[:2, 0] = [1, 0]
    elif order == "yzx":
        change[:, 0] = [2, 0, 1]
    else:
        change[order[0], 1] = order[1]
    nib.save(nib.Nifti1Image(label, AFFINE).as_reoriented(change), tmp_path / "label.nii")
    with pytest.warns(UserWarning, match=r"label\.nii: stored in another order"):
        read = read_label(tmp_path / "label.nii", image, 4)
    assert np.array_equal(read.array, label.T) and read.spacing == image.spacing


def test_a_plainly_wrong_affine_of_a_label_stays_matched_by_voxel(tmp_path):
    label = (voxels() % 4).astype(np.uint8)
    image = read_image(save(tmp_path / "image.nii", affine=AFFINE @ np.diag([-1, -1, 1, 1])))
    save(tmp_path / "label.nii", label, affine=np.eye(4))
    with pytest.warns(UserWarning, match="matched voxel by voxel"):
        assert np.array_equal(read_label(tmp_path / "label.nii", image, 4).array, label.T)


@pytest.mark.parametrize("shift", [1e-6, -1e-6, 9e-4, -9e-4])
def test_label_values_next_to_whole_numbers_are_rounded(shift, tmp_path):
    label = (voxels() % 4).astype(np.float32)
    image = read_image(save(tmp_path / "image.nii"))
    save(tmp_path / "label.nii", label * np.float32(1 + shift / 3))
    with pytest.warns(UserWarning, match=r"label\.nii: label values next to whole numbers"):
        assert np.array_equal(read_label(tmp_path / "label.nii", image, 4).array, label.T)


@pytest.mark.parametrize("value", [0.5, 1.002, 2.99, -0.01])
def test_other_fractions_are_refused(value, tmp_path):
    label = (voxels() % 4).astype(np.float32)
    label[0, 0, 0] = value
    image = read_image(save(tmp_path / "image.nii"))
    with pytest.raises(InputError, match="unknown values"):
        read_label(save(tmp_path / "label.nii", label), image, 4)


def test_a_name_that_says_otherwise_is_said_with_the_remedy(tmp_path):
    plain, packed = save(tmp_path / "a.nii"), save(tmp_path / "b.nii.gz")
    for path, remedy in ((packed.rename(tmp_path / "b.nii"), "nii.gz"), (plain.rename(tmp_path / "a.nii.gz"), "nii")):
        with pytest.raises(InputError, match=rf"{path.name}.*let its name end in \.{remedy}"):
            read_image(path)


def test_further_axes_of_one_are_dropped(tmp_path):
    assert np.array_equal(read_image(save(tmp_path / "a.nii", voxels()[..., None, None])).array, voxels().T)


def test_a_value_beyond_float32_is_named(tmp_path):
    array = voxels(np.float64)
    array[1, 1, 1] = 1e300
    with pytest.raises(InputError, match="1 of 126 voxels are NaN or infinite, or too large for float32"):
        read_image(save(tmp_path / "a.nii", array))
