"""Volumes at network size and back on their own grid."""

import dataclasses
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import SHAPE, save_nifti

from action.config import InputConfig
from action.data import Case, open_dataset
from action.data.crops import find_body
from action.data.intensities import intensity_limits, scale_intensity
from action.data.nifti import write_label
from action.data.volumes import load_case, load_cases, native_slice, resize_to_native
from action.errors import InputError


def scaled_by(intensity, array):
    return scale_intensity(array, intensity_limits(array, intensity))


def test_minmax_is_per_volume():
    array = np.array([[[-3.0, 1.0], [5.0, 2.0]]], np.float32)
    assert np.allclose(scaled_by("minmax", array), (array + 3) / 8)
    assert scaled_by("minmax", array).dtype == np.float32


def test_hounsfield_window():
    array = np.array([[[-1024.0, -200.0, 25.0, 250.0, 3000.0]]], np.float32)
    assert np.allclose(scaled_by("hu", array), [[[0, 0, 0.5, 1, 1]]])


@pytest.mark.parametrize("odd", [-501.0, 32767.0, np.finfo(np.float32).max, np.finfo(np.float32).min])
def test_single_voxels_do_not_change_how_the_others_are_scaled(odd):
    array = np.random.default_rng(0).normal(800, 200, (4, 40, 40)).astype(np.float32)
    plain = scaled_by("minmax", array)
    array[1, 2, 3] = odd
    scaled = scaled_by("minmax", array)
    scaled[1, 2, 3] = plain[1, 2, 3]
    assert np.abs(scaled - plain).max() < 0.005
    assert plain.min() == 0 and plain.max() == 1 and 0.4 < plain.mean() < 0.6


def test_where_most_voxels_are_background_the_others_give_the_range():
    array = np.zeros((4, 40, 40), np.float32)
    array[2, 5:7, 5:10] = np.linspace(100, 200, 10).reshape(2, 5)  # 10 of 6400
    scaled = scaled_by("minmax", array)
    assert np.allclose(scaled, array / 200, atol=1e-6)


def test_a_constant_volume_is_zero_and_not_nan():
    assert np.array_equal(scaled_by("minmax", np.full((2, 3, 4), 7.0, np.float32)), np.zeros((2, 3, 4)))


def test_unknown_scaling_is_named():
    with pytest.raises(InputError, match="'z-score': choose one of minmax, hu"):
        scaled_by("z-score", np.zeros((1, 2, 2), np.float32))


def test_a_case_at_its_own_size_is_not_resampled(acdc_root):
    case = open_dataset(acdc_root, "acdc").cases[0]
    loaded = load_case(case, 4, InputConfig((1.5, 1.5), intensity="minmax"))
    raw = np.asarray(nib.load(case.image).dataobj).T.astype(np.float32)
    low, high = np.quantile(raw, [0.005, 0.995])
    assert np.allclose(loaded.image[:, 0], np.clip((raw - low) / (high - low), 0, 1), atol=0.01)
    assert np.array_equal(loaded.label, np.asarray(nib.load(case.label).dataobj).T)
    assert np.array_equal(loaded.truth, loaded.label)
    assert (loaded.name, loaded.patient) == ("patient001_frame01", "patient001")
    assert loaded.spacing == (8.0, 1.5, 1.5) and loaded.shape == SHAPE
    assert loaded.image.dtype == np.float16 and loaded.label.dtype == loaded.truth.dtype == np.uint8


SPACINGS = (1.5, 1.5), (0.75, 0.5)


def test_resampling_keeps_places_and_label_values(acdc_root):
    case = open_dataset(acdc_root, "acdc").cases[0]
    native, doubled = (load_case(case, 4, InputConfig(spacing, intensity="minmax")) for spacing in SPACINGS)
    assert doubled.image[:, 0].shape == doubled.label.shape == (4, 64, 96) and doubled.truth.shape == SHAPE
    assert np.array_equal(doubled.label, native.label.repeat(2, 1).repeat(3, 2))
    blocks = doubled.image.reshape(4, 32, 2, 32, 3).mean((2, 4))  # a shift by a pixel would show
    assert np.corrcoef(blocks.ravel(), native.image.ravel())[0, 1] > 0.98
    assert doubled.image.min() >= 0 and doubled.image.max() <= 1


def test_shrinking_averages_instead_of_skipping(tmp_path):
    image = np.indices((2, 32, 32)).sum(0) % 2 * 100  # a chessboard
    case = Case("a", "a", save_nifti(tmp_path / "a.nii.gz", image.astype(np.int16)), None)
    shrunk = load_case(case, 2, InputConfig((3, 3), intensity="minmax")).image
    assert np.allclose(shrunk[..., 1:-1, 1:-1], 0.5, atol=1e-5)


def test_a_case_without_label(acdc_root):
    case = dataclasses.replace(open_dataset(acdc_root, "acdc").cases[0], label=None)
    loaded = load_case(case, 4, InputConfig((3, 3)))
    assert loaded.label is None and loaded.truth is None and loaded.image.shape == (4, 1, 16, 16)


def test_geometry_survives_until_a_prediction_is_written(lits_root, tmp_path):
    case = open_dataset(lits_root, "lits").cases[2]
    loaded = load_case(case, 3, InputConfig((1.5, 0.5)))
    assert loaded.volume.array.size == 0  # the native voxels are given back
    write_label(tmp_path / "out.nii.gz", loaded.truth, loaded.volume)
    written = nib.load(tmp_path / "out.nii.gz")
    assert np.array_equal(written.affine, nib.load(case.image).affine)
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(nib.load(case.label).dataobj))


@pytest.mark.filterwarnings("ignore:.*affine differs")
def test_all_cases_in_order(lits_root):
    cases = open_dataset(lits_root, "lits").cases
    loaded = load_cases(cases, 3, InputConfig((0.75, 0.75)), progress=True)
    assert [case.name for case in loaded] == [case.name for case in cases]
    assert all(case.image[:, :, 0].max() == 0 for case in loaded)  # air is 0 in the window of soft tissue
    lean = load_cases(cases, 3, InputConfig((0.75, 0.75)), training=[cases[0].patient])
    assert lean[0].truth is None and np.array_equal(lean[0].label, loaded[0].label)
    assert all(case.truth is not None for case in lean[1:])


def ct_slices() -> np.ndarray:
    """Two slices of 40 by 60 pixels of air: in the second a body of 10 by 20 with lung in it, a table below both."""
    array = np.full((2, 40, 60), -1000.0, np.float32)
    array[1, 5:15, 30:50] = 40
    array[1, 8:12, 35:45] = -800
    array[:, 20, 10:60] = 200
    return array


def test_the_body_is_found():
    assert find_body(ct_slices()) == np.s_[5:15, 30:50]


def test_without_a_body_slices_stay_whole():
    assert find_body(np.full((2, 8, 9), -1000.0)) == np.s_[0:8, 0:9]


def test_a_volume_without_air_cannot_be_cropped_to_the_body(acdc_root):
    case = open_dataset(acdc_root, "acdc").cases[0]
    with pytest.raises(InputError, match=r"patient001_frame01\.nii\.gz: no voxel is air .* use input\.crop=none"):
        load_case(case, 4, InputConfig((1.5, 1.5), crop="body"))


def test_a_case_cropped_to_the_body_returns_to_its_place(tmp_path):
    image = ct_slices()
    label = np.zeros(image.shape, np.uint8)
    label[1, 9:13, 31:42] = 1
    label[0, 0, 0] = 1  # outside the box
    files = [save_nifti(tmp_path / f"{name}.nii.gz", array) for name, array in (("a", image), ("a_gt", label))]
    case = load_case(Case("a", "a", *files), 2, InputConfig((0.75, 0.75), crop="body"))
    rows, columns = case.box
    shown = native_slice(case, 1)
    means = case.image[1, 0].astype(np.float32).reshape(10, 2, 20, 2).mean((1, 3))  # of the network's smaller pixels
    assert np.allclose(shown[rows, columns], means, atol=1e-3) and shown.shape == case.shape[1:]
    outside = np.ones(shown.shape, bool)
    outside[rows, columns] = False
    assert outside.any() and not shown[outside].any()
    assert case.image[:, 0].shape == case.label.shape == (2, 20, 40) and case.shape == image.shape
    assert case.image[1].min() == 0 and case.label[1, 8:16, 2:24].all() and case.label.sum() == 8 * 22
    assert np.array_equal(case.truth, label)
    probabilities = np.stack([1 - case.label, case.label]).astype(np.float32)
    native = resize_to_native(torch.from_numpy(probabilities).unbind(1), case.shape, case.box)
    label[0, 0, 0] = 0
    assert np.array_equal(native, label)


def test_problems_of_all_files_come_together(acdc_root, tmp_path):
    root = shutil.copytree(acdc_root, tmp_path / "data")
    cases = open_dataset(root, "acdc").cases
    cases[0].image.write_bytes(cases[0].image.read_bytes()[:100])
    save_nifti(cases[3].label, np.full(SHAPE, 9, np.uint8))
    save_nifti(cases[5].label, np.zeros((4, 32, 31), np.uint8))
    with pytest.raises(InputError) as error:
        load_cases(cases, 4, InputConfig((1.5, 1.5)))
    message = str(error.value)
    assert "3 problems" in message
    for path in (cases[0].image, cases[3].label, cases[5].label):
        assert str(path) in message
    assert "patient001_frame09" not in message


def test_a_label_with_identity_affine_is_taken_with_a_warning(lits_root):
    case = open_dataset(lits_root, "lits").cases[9]
    with pytest.warns(UserWarning, match=r"segmentation-9\.nii\.gz: affine differs"):
        loaded = load_case(case, 3, InputConfig((0.75, 0.75)))
    assert set(np.unique(loaded.truth)) == {0, 1, 2}
    assert loaded.spacing == (2.5, 0.75, 0.75)


def test_native_labels_of_probabilities_at_native_size():
    labels = np.random.default_rng(0).integers(0, 3, (2, 5, 6))
    probabilities = torch.nn.functional.one_hot(torch.from_numpy(labels), 3).permute(3, 0, 1, 2).float()
    native = resize_to_native(probabilities.unbind(1), (2, 5, 6), np.s_[0:5, 0:6])
    assert native.dtype == np.uint8 and np.array_equal(native, labels)
    kept = np.empty((3, 2, 8, 7), np.float16)
    native = resize_to_native(probabilities.unbind(1), (2, 8, 7), np.s_[2:7, 1:7], kept)
    assert np.array_equal(kept[:, :, 2:7, 1:7], probabilities.numpy()) and np.array_equal(kept.argmax(0), native)
    assert np.array_equal(kept[:, :, :2], np.broadcast_to([[[[1]]], [[[0]]], [[[0]]]], (3, 2, 2, 7)))  # background


def test_probabilities_are_interpolated_before_the_decision():
    # Four pixels of a line: class 1 leads by far in one and trails by little in the next, so that the boundary lies
    # beyond the middle between them; resized labels would put it in the middle.
    p = torch.tensor([0.95, 0.95, 0.4, 0.05])
    probabilities = torch.stack([1 - p, p])[:, None, None].expand(2, 1, 4, 4)
    native = resize_to_native(probabilities.unbind(1), (1, 4, 16), np.s_[0:4, 0:16])
    line = np.interp((np.arange(16) + 0.5) / 4 - 0.5, np.arange(4), p.numpy())
    assert np.array_equal(native[0, 0], line > 0.5)
    assert native[0, 0].sum() == 9  # of resized labels it would be 8


@pytest.mark.parametrize("depth", [2, 4])
def test_probabilities_of_another_depth_are_refused(depth):
    with pytest.raises(ValueError, match="zip"):
        resize_to_native(torch.zeros(2, depth, 8, 8).unbind(1), (3, 8, 8), np.s_[0:8, 0:8])
