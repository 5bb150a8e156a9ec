"""Turning volumes to the axes of others and back."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import save_nifti

from action.config import InputConfig
from action.data import Case
from action.data.fingerprint import fingerprint_of
from action.data.nifti import read_image, write_label
from action.data.orientation import Turn, axis_codes, common_directions, directions_of, turn_between
from action.data.volumes import load_case, resize_to_native

SHAPE = (3, 5, 7)
OBLIQUE = np.array([[1.2, 0.3, -2.0, 11.0], [-0.4, 1.1, 3.0, -7.5], [0.2, -0.6, 6.5, 40.0], [0, 0, 0, 1]])
TURNS = [
    Turn(axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)]
]


def rotation(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_what_is_turned_comes_back_and_stays_in_place(turn):
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    turned = turn.apply(array)
    assert turned.shape == turn.sizes(SHAPE)
    assert np.array_equal(turn.undo(turned), array)
    affine = turn.affine(OBLIQUE, SHAPE)
    for z, y, x in [(0, 0, 0), (2, 1, 6), (1, 4, 2)]:
        (where,) = np.argwhere(turned == array[z, y, x])
        assert np.allclose(affine @ [*where[::-1], 1], OBLIQUE @ [x, y, z, 1])
    assert np.allclose(turn.directions(directions_of(OBLIQUE)), directions_of(affine))
    assert np.allclose(turn.sizes(nib.affines.voxel_sizes(OBLIQUE)[::-1]), nib.affines.voxel_sizes(affine)[::-1])


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_the_turn_between_two_volumes_is_found(turn):
    wanted = rotation(25) @ np.eye(3)
    stored = directions_of(turn.affine(np.eye(4), SHAPE))
    assert turn_between(stored, wanted) == Turn(
        tuple(int(i) for i in np.argsort(turn.axes)), tuple(turn.signs[i] for i in np.argsort(turn.axes))
    )


def test_no_turn_is_guessed_between_oblique_volumes():
    assert turn_between(rotation(30), np.eye(3)) == Turn()
    assert turn_between(rotation(45), np.eye(3)) is None
    assert turn_between(rotation(90), np.eye(3)) == Turn((1, 0, 2), (1, -1, 1))


def test_most_volumes_say_which_way_the_axes_run():
    odd = directions_of(Turn((2, 0, 1)).affine(np.eye(4), SHAPE))
    common = common_directions([odd, rotation(10), rotation(-10), rotation(0)])
    assert np.array_equal(common, np.eye(3)) and axis_codes(common) == "RAS"
    assert common_directions([]) is None


@pytest.mark.parametrize("turn", TURNS, ids=str)
@pytest.mark.parametrize("affine", [np.diag([-1.5, -1.4, 8.0, 1.0]), OBLIQUE], ids=["straight", "oblique"])
def test_a_volume_stored_otherwise_looks_the_same_and_its_labels_return_to_its_own_grid(tmp_path, turn, affine):
    rng = np.random.default_rng(0)
    image, label = rng.normal(100, 20, (4, 16, 24)), rng.integers(0, 3, (4, 16, 24)).astype(np.uint8)
    stored = [turn.apply(array) for array in (image, label)]
    other = turn.affine(affine, image.shape)
    case = Case("a", "a", save_nifti(tmp_path / "a.nii", image, affine), save_nifti(tmp_path / "b.nii", label, affine))
    changed = Case(
        "c", "c", save_nifti(tmp_path / "c.nii.gz", stored[0], other), save_nifti(tmp_path / "d.nii", stored[1], other)
    )
    config = InputConfig(read_image(case.image).spacing[1:])
    fingerprint = fingerprint_of([case], "auto")
    usual = load_case(case, 3, config, fingerprint)
    if turn.is_identity:
        same = load_case(changed, 3, config, fingerprint)
    else:
        with pytest.warns(UserWarning, match=r"c\.nii\.gz: stored with other axes .*, sliced as they are"):
            same = load_case(changed, 3, config, fingerprint)
    assert np.array_equal(same.image, usual.image) and np.array_equal(same.truth, usual.truth)
    assert np.allclose(same.spacing, usual.spacing) and same.shape == usual.shape

    slices = torch.eye(3)[torch.from_numpy(same.label).long()].movedim(3, 1)
    write_label(tmp_path / "out.nii.gz", resize_to_native(slices, same.shape, same.box), same.volume)
    written = nib.load(tmp_path / "out.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), stored[1].T)
    assert np.array_equal(written.affine, nib.load(changed.image).affine)


def test_a_header_without_directions_turns_nothing(tmp_path):
    image = np.random.default_rng(0).normal(100, 20, (4, 16, 24)).astype(np.float32)
    plain = Case("a", "a", save_nifti(tmp_path / "a.nii", image), None)
    file = nib.Nifti1Image(image.T, np.diag([1.5, 1.5, 8.0, 1.0]))
    file.set_sform(None, code=0)
    file.set_qform(None, code=0)
    nib.save(file, tmp_path / "b.nii")
    assert read_image(tmp_path / "b.nii").affine[0, 0] < 0  # what the library makes of it
    with pytest.warns(UserWarning, match=r"b\.nii: its header has neither sform nor qform"):
        loaded = load_case(
            Case("b", "b", tmp_path / "b.nii", None), 2, InputConfig((1.5, 1.5)), fingerprint_of([plain], "auto")
        )
    assert np.array_equal(loaded.image, load_case(plain, 2, InputConfig((1.5, 1.5))).image)
