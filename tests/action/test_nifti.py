"""NIfTI in and out: orientation, geometry, and every file that must be refused."""

import gzip
import warnings

import nibabel as nib
import numpy as np
import pytest

from action.data.nifti import read_channel, read_image, read_label, write_label
from action.errors import InputError

SHAPE = (3, 5, 7)  # z, y, x: all different, so that a swap of axes shows
OBLIQUE = np.array([[1.2, 0.3, -2.0, 11.0], [-0.4, 1.1, 3.0, -7.5], [0.2, -0.6, 6.5, 40.0], [0, 0, 0, 1]])


def save(path, array, affine=OBLIQUE, header=None, kind=nib.Nifti1Image):
    nib.save(kind(array.T, affine, header), path)
    return path


@pytest.fixture
def array():
    return np.random.default_rng(0).normal(0, 200, SHAPE).astype(np.float32)


@pytest.fixture
def image(tmp_path, array):
    return read_image(save(tmp_path / "image.nii.gz", array))


def test_axes_spacing_and_affine_of_an_image(image, array):
    assert image.array.dtype == np.float32 and image.array.shape == SHAPE
    assert np.array_equal(image.array, array)
    lengths = np.sqrt((OBLIQUE[:3, :3] ** 2).sum(0))
    assert np.allclose(image.spacing, lengths[::-1])
    assert np.allclose(image.affine, OBLIQUE)


def test_scaled_integers_become_their_values(tmp_path):
    stored = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    file = nib.Nifti1Image(stored.T, OBLIQUE)
    file.header.set_slope_inter(0.5, -1024)
    nib.save(file, tmp_path / "a.nii")
    raw = nib.load(tmp_path / "a.nii")
    assert np.allclose(read_image(tmp_path / "a.nii").array, raw.get_fdata().T)


@pytest.mark.parametrize("trailing", [(1,), (2,)])
def test_a_fourth_axis_is_dropped_only_if_it_is_one(tmp_path, array, trailing):
    path = tmp_path / "4d.nii.gz"
    nib.save(nib.Nifti1Image(np.repeat(array.T[..., None], trailing[0], axis=3), OBLIQUE), path)
    if trailing == (1,):
        assert np.array_equal(read_image(path).array, array)
        assert len(read_image(path).spacing) == 3
    else:
        with pytest.raises(InputError, match=r"4d\.nii\.gz has 7 x 5 x 3 x 2 voxels"):
            read_image(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_refused(tmp_path, array, value):
    array[1, 2, 3] = value
    with pytest.raises(InputError, match=r"bad\.nii\.gz: 1 of 105 voxels are NaN or infinite"):
        read_image(save(tmp_path / "bad.nii.gz", array))


def missing(path):
    path.unlink()


def truncated(path):
    path.write_bytes(path.read_bytes()[:-60])


def no_gzip(path):
    path.write_bytes(b"this is text, not gzip")


def gzip_of_text(path):
    path.write_bytes(gzip.compress(b"this is text, not NIfTI" * 40))


def no_bytes(path):
    path.write_bytes(b"")


def damaged(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [missing, truncated, no_gzip, gzip_of_text, no_bytes, damaged])
def test_unreadable_files_are_named(tmp_path, array, damage):
    path = save(tmp_path / "victim.nii.gz", array)
    damage(path)
    with pytest.raises(InputError, match=r"victim\.nii\.gz") as error:
        read_image(path)
    assert "\n" not in str(error.value)


def test_truncated_uncompressed_file_is_named(tmp_path, array):
    path = save(tmp_path / "victim.nii", array)
    truncated(path)
    with pytest.raises(InputError, match=r"victim\.nii"):
        read_image(path)


def test_another_image_format_is_refused(tmp_path, array):
    nib.save(nib.freesurfer.MGHImage(array.T, OBLIQUE), tmp_path / "a.mgz")
    with pytest.raises(InputError, match=r"a\.mgz.*not a NIfTI"):
        read_image(tmp_path / "a.mgz")


def test_colours_are_refused(tmp_path):
    colours = np.zeros(SHAPE[::-1], [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, OBLIQUE), tmp_path / "rgb.nii.gz")
    with pytest.raises(InputError, match=r"rgb\.nii\.gz"):
        read_image(tmp_path / "rgb.nii.gz")


@pytest.mark.parametrize("size", [0, np.inf])
def test_voxels_without_a_size_are_refused(tmp_path, array, size):
    path = save(tmp_path / "flat.nii", array)
    content = bytearray(path.read_bytes())
    content[88:92] = np.float32(size).tobytes()  # pixdim[3]
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"flat\.nii.*pixdim"):
        read_image(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_labels_of_any_type_become_uint8(tmp_path, image, dtype):
    label = np.random.default_rng(1).integers(0, 4, SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_label(save(tmp_path / "gt.nii.gz", label.astype(dtype)), image, 4)
    assert read.array.dtype == np.uint8 and np.array_equal(read.array, label)


@pytest.mark.parametrize(
    ("dtype", "value", "shown"),
    [
        (np.uint8, 4, "4"),
        (np.int16, -1, "-1"),
        (np.float32, 1.5, "1.5"),
        (np.float32, np.nan, "nan"),
        (np.int16, 256, "256"),
    ],
)
def test_unknown_label_values_are_named(tmp_path, image, dtype, value, shown):
    label = np.zeros(SHAPE, dtype)
    label[0, 0, 0] = value
    with pytest.raises(InputError, match=rf"gt\.nii\.gz of .*image\.nii\.gz has unknown values {shown}: .* 0\.\.3"):
        read_label(save(tmp_path / "gt.nii.gz", label), image, 4)


def test_label_of_another_shape_names_both_files(tmp_path, image):
    path = save(tmp_path / "gt.nii.gz", np.zeros((3, 5, 6), np.uint8))
    with pytest.raises(InputError, match=r"gt\.nii\.gz has 6 x 5 x 3 voxels but image .*image\.nii\.gz has 7 x 5 x 3"):
        read_label(path, image, 4)


def test_label_with_a_wrong_affine_is_matched_by_voxel_with_one_warning(tmp_path, image):
    label = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint8)
    path = save(tmp_path / "gt.nii.gz", label, np.eye(4))
    with pytest.warns(UserWarning, match=r"gt\.nii\.gz: affine differs") as caught:
        read = read_label(path, image, 4)
    assert len(caught) == 1
    assert np.array_equal(read.array, label)
    assert np.array_equal(read.affine, image.affine) and read.spacing == image.spacing


def test_the_warning_about_an_affine_comes_once_per_file(tmp_path, image):
    paths = [save(tmp_path / f"gt{i}.nii.gz", np.zeros(SHAPE, np.uint8), np.eye(4)) for i in range(2)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for path in [*paths, *paths]:
            read_label(path, image, 4)
    assert len(caught) == 2


def moved(x, y, z):
    """The image's affine, shifted by millimetres along its own axes."""
    affine = OBLIQUE.copy()
    affine[:3, 3] += OBLIQUE[:3, :3] / np.linalg.norm(OBLIQUE[:3, :3], axis=0) @ (x, y, z)
    return affine


EXTENTS = np.linalg.norm(OBLIQUE[:3, :3], axis=0) * SHAPE[::-1]


@pytest.mark.parametrize(
    "read, what", [(lambda path, image: read_label(path, image, 4), "label"), (read_channel, "channel")]
)
@pytest.mark.parametrize("axis", range(3))
def test_what_lies_outside_the_image_is_refused_and_names_both_files_and_the_shift(tmp_path, image, read, what, axis):
    array = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint8)
    shift = np.zeros(3)
    shift[axis] = 0.45 * EXTENTS[axis]
    near, far = (save(tmp_path / f"{n}.nii.gz", array, moved(*(n * shift))) for n in (1, 2))
    with pytest.warns(UserWarning, match="affine differs"):
        assert np.array_equal(read(near, image).array, array)
    wanted = (
        rf"^{what} .*2\.nii\.gz lies {2 * shift.sum():.0f} mm from image .*image\.nii\.gz .* copy the image's affine"
    )
    with pytest.raises(InputError, match=wanted):
        read(far, image)


def test_headers_without_a_place_say_nothing_about_the_distance(tmp_path, image):
    label = np.zeros(SHAPE, np.uint8)
    far = moved(*(10 * EXTENTS))
    path = save(tmp_path / "gt.nii.gz", label, far)
    file = nib.load(path)
    file.set_sform(far, code=0)
    file.set_qform(far, code=0)
    nib.save(file, tmp_path / "open.nii.gz")
    origin = OBLIQUE.copy()
    origin[:3, 3] = 0
    for name, affine in (("open", None), ("origin", origin)):
        with pytest.warns(UserWarning, match="affine differs"):
            read_label(
                tmp_path / "open.nii.gz" if affine is None else save(tmp_path / f"{name}.nii.gz", label, affine),
                image,
                4,
            )


@pytest.mark.parametrize("end", [".nii.gz", ".nii"])
@pytest.mark.parametrize(
    ("kind", "codes"), [(nib.Nifti1Image, (1, 4)), (nib.Nifti1Image, (2, 0)), (nib.Nifti2Image, (1, 2))]
)
def test_written_labels_keep_the_geometry_and_its_codes(tmp_path, array, end, kind, codes):
    affine = (OBLIQUE if codes[1] == 0 else np.diag([-1.5, -1.4, 8.0, 1.0])).copy()  # a qform cannot shear
    affine[:3, 3] = (30.5, -12.25, 7.125)
    source = kind(array.T, affine)
    source.set_qform(affine, code=codes[1], strip_shears=True)
    source.set_sform(affine, code=codes[0])
    source.header.set_xyzt_units("mm", "sec")
    source.header["cal_max"] = 500
    nib.save(source, tmp_path / "image.nii.gz")
    image = read_image(tmp_path / "image.nii.gz")
    label = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint8)
    path = tmp_path / f"out{end}"
    write_label(path, label, image)

    written, original = nib.load(path), nib.load(tmp_path / "image.nii.gz")
    assert type(written) is kind
    assert np.array_equal(np.asarray(written.dataobj), label.T) and written.get_data_dtype() == np.uint8
    assert np.array_equal(written.affine, original.affine)
    for field in ("sform_code", "qform_code", "xyzt_units", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x"):
        assert np.array_equal(written.header[field], original.header[field]), field
    assert np.array_equal(written.header["pixdim"], original.header["pixdim"])
    assert written.header["cal_max"] == 0
    assert np.array_equal(read_label(path, image, 4).array, label)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, image, monkeypatch):
    path = tmp_path / "out.nii.gz"
    write_label(path, np.ones(SHAPE, np.uint8), image)
    before = path.read_bytes()

    def fails(_, target):
        target.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(nib, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        write_label(path, np.zeros(SHAPE, np.uint8), image)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image.nii.gz", "out.nii.gz"]


def test_a_folder_in_the_place_of_an_image_is_named(tmp_path):
    with pytest.raises(InputError, match=r"is a folder: name the images in it"):
        read_image(tmp_path)
    with pytest.raises(InputError, match=r"none.nii.gz does not exist"):
        read_image(tmp_path / "none.nii.gz")
