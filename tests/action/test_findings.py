"""What is odd about readable data: `action.prepare check` and `action.train` say the same, and refuse the same."""

import json
import shutil
import warnings
import zlib

import nibabel as nib
import numpy as np
import pytest
from conftest import SHAPE, save_nifti

from action import prepare
from action.config import InputConfig, TrainConfig
from action.data import findings
from action.errors import InputError
from action.experiment import load_data

PATIENTS = [f"patient{number:03d}" for number in range(1, 11)]


@pytest.fixture
def root(acdc_root, tmp_path):
    """Ten patients, the first two of seven in training; which are labelled is drawn."""
    root = shutil.copytree(acdc_root, tmp_path / "data")
    sets = {"train": PATIENTS[:7], "validation": PATIENTS[7:8], "test": PATIENTS[8:]}
    (root / "split.json").write_text(json.dumps(sets))
    return root


def said(capsys, root, labeled=7, method="supervised"):
    """The notes of the check, and those of a training."""
    prepare.main(["check", str(root)])
    checked = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    load_data(TrainConfig(str(root), labeled=labeled, method=method, input=InputConfig((1.5, 1.5))))
    trained = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    return checked, trained


def relabel(root, change, *patients):
    for patient in patients:
        for path in (root / patient).glob("*_gt.nii.gz"):
            label = np.asarray(nib.load(path).dataobj).T.copy()
            save_nifti(path, change(label).astype(np.uint8))


def refused(root, words):
    """Both refuse, in the same words."""
    with pytest.raises(InputError, match=words):
        prepare.main(["check", str(root)])
    with pytest.raises(InputError, match=words):
        load_data(TrainConfig(str(root), labeled=2, input=InputConfig((1.5, 1.5))))


def test_nothing_is_said_of_sound_data(root, capsys):
    assert said(capsys, root) == ([], [])


def test_a_class_that_no_labelled_patient_has(root, capsys):
    relabel(root, lambda label: np.where(label == 2, 0, label), *PATIENTS)
    for notes in said(capsys, root):
        assert "note: no labelled patient has a voxel of myocardium: it cannot be learned" in notes
        assert "note: patient002_frame04 has no voxel of myocardium" in notes


def test_training_looks_at_its_own_labelled_patients(root, capsys):
    drawn = load_data(TrainConfig(str(root), labeled=2, input=InputConfig((1.5, 1.5)))).split.labeled
    capsys.readouterr()
    relabel(root, lambda label: np.where(label == 3, 0, label), *drawn)
    checked, trained = said(capsys, root, labeled=2, method="action")
    assert "note: no labelled patient has a voxel of left ventricle: it cannot be learned" in trained
    assert not any("it cannot be learned" in note for note in checked)  # others have it


def test_a_labelled_patient_without_foreground(root, capsys):
    relabel(root, np.zeros_like, "patient003", "patient005")
    for notes in said(capsys, root):
        for patient in ("patient003", "patient005"):
            assert f"note: labelled patient {patient} has no foreground: is the label drawn?" in notes


def test_the_same_scan_under_two_names(root, capsys):
    shutil.copy(root / "patient001" / "patient001_frame01.nii.gz", root / "patient009" / "patient009_frame09.nii.gz")
    shutil.copy(root / "patient004" / "patient004_frame01.nii.gz", root / "patient004" / "patient004_frame09.nii.gz")
    image = nib.load(root / "patient005" / "patient005_frame01.nii.gz")
    data = np.asarray(image.dataobj).astype(np.float32)  # another type, uncompressed: the same scan still
    (root / "patient006" / "patient006_frame01.nii.gz").unlink()
    nib.save(nib.Nifti1Image(data, image.affine), root / "patient006" / "patient006_frame01.nii")
    checked, trained = said(capsys, root)
    for notes in (checked, trained):
        assert len(notes) == 3
        assert "note: patient004_frame01, patient004_frame09 are the same scan" in notes
    twice = "note: patient005_frame01, patient006_frame01 are the same scan of several patients"
    assert f"{twice}: keep one, or put them into one set" in checked
    assert f"{twice}, all in the set training" in trained
    assert any("patient001_frame01, patient009_frame09 are the same scan of several patients" in n for n in checked)
    assert any("patient009_frame09 are the same scan, in the sets training and test:" in note for note in trained)


def test_volumes_that_are_turned_are_one_note(root, capsys):
    for patient in ("patient004", "patient006"):
        for path in (root / patient).glob("*frame*.nii.gz"):
            nib.save(nib.load(path).as_reoriented([[1, -1], [0, 1], [2, 1]]), path)
    for path in (root / "patient005").glob("*frame*.nii.gz"):
        nib.save(nib.load(path).as_reoriented([[0, -1], [1, 1], [2, 1]]), path)
    for notes in said(capsys, root):
        (note,) = notes
        assert note.startswith("note: each of 6 files (") and " and 3 more): stored with other axes" in note
        assert note.count(".nii.gz") == 3 and "patient004_frame01.nii.gz" in note


def test_notes_on_several_files_are_one_and_others_stay():
    notes = [
        *("/a b/1.nii: bent", "x has no voxel of liver", "2.nii.gz: bent", "3.h5: bent", "2.nii.gz: cut", "x: bent"),
        *(
            "4.nii: bent",
            "1.nii.gz: cut",
            "labelled patient x has no foreground: is the label drawn?",
            "2.nii.gz: bent",
        ),
    ]
    assert findings.merged(notes) == [
        "each of 4 files (/a b/1.nii, 2.nii.gz, 3.h5 and 1 more): bent",
        "x has no voxel of liver",
        "each of 2 files (2.nii.gz, 1.nii.gz): cut",
        "x: bent",
        "labelled patient x has no foreground: is the label drawn?",
    ]


def test_an_affine_that_differs_is_a_note_of_training_too(root, capsys):
    path = root / "patient008" / "patient008_frame01_gt.nii.gz"
    save_nifti(path, np.asarray(nib.load(path).dataobj).T, np.eye(4))
    for notes in said(capsys, root):
        assert any(str(path) in note for note in notes)


@pytest.mark.parametrize("patient", ["patient002", "patient008", "patient010"])  # training, validation, test
def test_an_image_that_shows_nothing_is_refused(root, patient):
    path = next(path for path in sorted((root / patient).glob("*.nii.gz")) if path.name[-9:-7].isdigit())
    save_nifti(path, np.full(SHAPE, 7, np.int16))
    refused(root, f"{path.name}: every voxel is")


def test_all_images_that_show_nothing_are_named_at_once(root):
    for patient in ("patient005", "patient006"):
        save_nifti(root / patient / f"{patient}_frame09.nii.gz", np.zeros(SHAPE, np.int16))
    refused(root, r"2 problems(.|\n)*patient005_frame09(.|\n)*patient006_frame09")


def test_an_image_of_which_scaling_leaves_nothing(lits_root, tmp_path, capsys):
    root = shutil.copytree(lits_root, tmp_path / "data")
    image = nib.load(root / "volume-4.nii")
    save_nifti(root / "volume-4.nii", np.asarray(image.dataobj).T // 8 - 900, image.affine)  # nothing above -200 HU
    config = TrainConfig(str(root), "lits", labeled=2, input=InputConfig((0.75, 0.75), intensity="hu"))
    load_data(config)
    assert "note: volume-4 is one even surface to the network" in capsys.readouterr().out


def test_data_without_any_foreground_are_refused(root):
    relabel(root, np.zeros_like, *PATIENTS)
    refused(root, "no labelled patient .* has a voxel of any class but the background")


@pytest.mark.parametrize(
    ("patients", "what"), [(PATIENTS[:7], "labelled"), (PATIENTS[7:8], "validation"), (PATIENTS[8:], "test")]
)
def test_a_set_without_any_foreground_is_refused_by_training(root, patients, what):
    relabel(root, np.zeros_like, *patients)
    prepare.main(["check", str(root)])  # knows no sets
    with pytest.raises(InputError, match=f"no {what} patient .*{patients[0]}|no {what} patient"):
        load_data(TrainConfig(str(root), labeled=2, input=InputConfig((1.5, 1.5))))


def test_only_warnings_for_the_user_become_notes():
    notes: list[str] = []
    with pytest.warns(DeprecationWarning, match="of a library"), findings.collected(notes):  # noqa: PT031
        for _ in range(2):
            warnings.warn("odd", stacklevel=1)
        warnings.warn("of a library", DeprecationWarning, stacklevel=1)
    assert notes == ["odd"]


def without_size(root, *patients):
    for patient in patients:
        for path in (root / patient).glob("*_frame*.nii.gz"):
            array = np.asarray(nib.load(path).dataobj)
            nib.save(nib.Nifti1Image(array, np.eye(4)), path)  # as nibabel writes an array alone: without a unit


def test_volumes_without_a_voxel_size(root, capsys):
    without_size(root, *PATIENTS)
    for notes in said(capsys, root):
        assert notes == ["note: no volume has a voxel size (1 x 1 x 1 without a unit): lengths are in voxels"]


def test_some_volumes_without_a_voxel_size(root, capsys):
    without_size(root, "patient003")
    for notes in said(capsys, root):
        assert any(
            "unlike the others: patient003_frame01; their voxels count as 1 mm" in note
            and "repair their headers" in note
            for note in notes
        )


def test_a_size_of_one_millimetre_is_one(root, capsys):
    for path in root.glob("*/*_frame*.nii.gz"):
        image = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), np.eye(4))
        image.header.set_xyzt_units("mm")
        nib.save(image, path)
    assert said(capsys, root) == ([], [])


def test_small_slices_with_one_checksum_are_no_copies():
    """CRC-32 is linear: what changes one image by a multiple of its polynomial leaves its checksum as it is."""
    one = np.zeros((1, 16, 16), np.uint8)
    other = one.copy()
    other.ravel()[:5] = np.frombuffer((0x1DB710641).to_bytes(5, "little"), np.uint8)
    assert zlib.crc32(one) == zlib.crc32(other)
    one[0, 15, 15] = other[0, 15, 15] = 1  # not blank
    digests = {findings.facts_of("case", "patient", [image], None, 2).digest for image in (one, other)}
    assert len(digests) == 2
