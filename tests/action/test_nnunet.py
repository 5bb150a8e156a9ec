"""nnU-Net's raw layout: what is found, the sets that it prescribes, faults by name, from data to predicted volumes."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import save_nifti
from layouts import SHORT, case_images, describe, write_nnunet

from action import evaluate, predict, prepare, train
from action.data import open_dataset
from action.data.split import make_split
from action.errors import InputError


def split_of(root, fold=0, labeled=1):
    dataset = open_dataset(root, "nnunet")
    return make_split(dataset.cases, labeled=labeled, seed=0, prescribed=dataset.find_sets(fold))


def test_cases_of_every_folder(tmp_path):
    root = write_nnunet(tmp_path, labeled=2, unlabeled=1, test=1, channels=2)
    for channel in (0, 1):
        (root / "imagesTs" / f"heart_9_000{channel}.nii.gz").write_bytes(b"to be predicted, never read")
    shutil.move(root / "labelsTr" / "heart_2.nii.gz", root / "kept.nii.gz")
    dataset = open_dataset(root, "nnunet")
    assert dataset.class_names == ("background", "wall", "chamber")
    assert [case.name for case in dataset.cases] == ["heart_1", "heart_2", "heart_3", "heart_4"]
    assert [case.label is not None for case in dataset.cases] == [True, False, False, True]
    assert [path.name for path in dataset.cases[3].images] == ["heart_4_0000.nii.gz", "heart_4_0001.nii.gz"]


def test_files_without_compression(tmp_path):
    cases = open_dataset(write_nnunet(tmp_path, end=".nii"), "nnunet").cases
    assert len(cases) == 7 and cases[0].image.name == "heart_1_0000.nii" and cases[0].label.name == "heart_1.nii"


def test_the_first_version_s_description(tmp_path):
    root = write_nnunet(tmp_path, unlabeled=0)
    for path in (root / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace("_0000", "")))
    labels = {"0": "background", "1": "wall", "2": "chamber"}
    describe(root, channel_names=None, file_ending=None, modality={"0": "MRI"}, labels=labels)
    dataset = open_dataset(root, "nnunet")
    assert dataset.class_names == ("background", "wall", "chamber")
    assert [case.name for case in dataset.cases] == [f"heart_{number}" for number in range(1, 6)]


def test_frames_of_a_patient_are_one_patient(tmp_path):
    root = write_nnunet(tmp_path, unlabeled=0)
    for folder in ("imagesTr", "labelsTr"):
        for path in list((root / folder).iterdir()):
            path.rename(path.with_name(path.name.replace("heart_2", "heart_1_frame02")))
    assert {case.patient for case in open_dataset(root, "nnunet").cases} == {f"heart_{n}" for n in (1, 3, 4, 5)}


FOLDS = [
    {"train": ["heart_4", "heart_2", "heart_1"], "val": ["heart_3", "heart_5"]},
    {"train": ["heart_3", "heart_5", "heart_1"], "val": ["heart_2", "heart_4"]},
]


def test_folds_are_honoured_and_others_train_without_labels(tmp_path):
    root = write_nnunet(tmp_path, test=1)
    (root / "splits_final.json").write_text(json.dumps(FOLDS))
    first, second = split_of(root), split_of(root, fold=1)
    assert first.validation == ("heart_3", "heart_5") and second.validation == ("heart_2", "heart_4")
    assert sorted([*first.labeled, *first.unlabeled]) == ["heart_1", "heart_2", "heart_4", "heart_6", "heart_7"]
    assert first.test == second.test == ("heart_8",)
    with pytest.raises(InputError, match=r"split\.fold is 2, but .*splits_final\.json has the folds 0 to 1"):
        split_of(root, fold=2)


def test_without_labels_of_test_cases_folds_leave_none_to_test(tmp_path):
    root = write_nnunet(tmp_path)
    (root / "splits_final.json").write_text(json.dumps(FOLDS))
    assert split_of(root).test == ()


def test_labelled_test_cases_test_and_the_others_are_divided(tmp_path):
    split = split_of(write_nnunet(tmp_path, labeled=6, test=2))
    assert split.test == ("heart_9", "heart_10")
    assert len(split.validation) == 1 and {"heart_7", "heart_8"} <= set(split.unlabeled)


@pytest.mark.parametrize(
    ("folds", "words"),
    [
        ("{", "not readable JSON"),
        ({"train": []}, "must be a list of folds"),
        ([{"train": ["heart_1"]}], "must be a list of folds"),
        ([{"train": ["heart_1"], "val": []}], "must be a list of folds"),
        ([], "must be a list of folds"),
        ([{"train": ["heart_1", "heart_99"], "val": ["heart_2"]}], "not in the data: heart_99"),
        ([{"train": ["heart_1", "heart_2"], "val": ["heart_2"]}], "heart_2 are in several sets"),
        ([{"train": ["heart_1"], "val": ["heart_2"]}], "leaves out patients heart_3, heart_4, heart_5"),
    ],
)
def test_folds_that_do_not_divide_the_cases(tmp_path, folds, words):
    root = write_nnunet(tmp_path)
    (root / "splits_final.json").write_text(folds if isinstance(folds, str) else json.dumps(folds))
    with pytest.raises(InputError, match=words) as error:
        split_of(root)
    assert "splits_final.json" in str(error.value)


def test_a_fold_of_data_without_folds(tmp_path):
    with pytest.raises(InputError, match=r"split\.fold is 1, but .* prescribes no folds"):
        split_of(write_nnunet(tmp_path), fold=1)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"channel_names": None}, "'modality' is None"),
        ({"channel_names": {"1": "T1"}}, "'channel_names' is"),
        ({"channel_names": {}}, "'channel_names' is empty"),
        ({"file_ending": ".mha"}, "'file_ending' is '.mha', but only"),
        ({"file_ending": ".nii"}, "does not end in .nii, which dataset.json says"),
        ({"labels": None}, "has no 'labels'"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "regions"),
        ({"labels": {"background": 0, "wall": 1, "chamber": 2, "ignore": 3}}, "'ignore'"),
    ],
)
def test_descriptions_that_cannot_be_read(tmp_path, changed, words):
    root = write_nnunet(tmp_path)
    describe(root, **changed)
    with pytest.raises(InputError, match=words) as error:
        open_dataset(root, "nnunet")
    assert str(root / "dataset.json") in str(error.value) or "imagesTr" in str(error.value)


def test_without_a_description(tmp_path):
    root = write_nnunet(tmp_path)
    (root / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"dataset\.json cannot be read .* 'file_ending'"):
        open_dataset(root, "nnunet")


def test_problems_are_all_named_at_once(tmp_path):
    root = write_nnunet(tmp_path, channels=2)
    (root / "imagesTr" / "heart_1_0001.nii.gz").unlink()
    (root / "imagesTr" / "heart_2_0000.nii.gz").rename(root / "imagesTr" / "heart_2.nii.gz")
    shutil.copy(root / "imagesTr" / "heart_3_0000.nii.gz", root / "imagesTr" / "heart_3_0002.nii.gz")
    shutil.copy(root / "labelsTr" / "heart_4.nii.gz", root / "labelsTr" / "heart_77.nii.gz")
    for channel in (0, 1):
        shutil.copy(root / "imagesTr" / f"heart_5_000{channel}.nii.gz", root / "imagesUn")
    with pytest.raises(InputError) as error:
        open_dataset(root, "nnunet")
    for part in (
        "imagesTr/heart_1_0001.nii.gz does not exist, but dataset.json names 2 channels",
        "imagesTr/heart_2.nii.gz does not say which channel it is",
        "imagesTr/heart_3_0002.nii.gz is a channel that dataset.json does not name",
        "labelsTr/heart_77.nii.gz has no image imagesTr/heart_77_0000.nii.gz",
        "heart_5 is there twice",
    ):
        assert part in str(error.value)
    assert "labelsTr/heart_1.nii.gz" not in str(error.value)  # it has an image, which only lacks a channel


@pytest.mark.parametrize(
    ("typed", "meant"), [("labelTr", "labelsTr"), ("imageUn", "imagesUn"), ("labelsTs_", "labelsTs")]
)
def test_folders_of_a_name_that_is_nearly_one_are_named(typed, meant, tmp_path):
    root = write_nnunet(tmp_path)
    shutil.rmtree(root / meant, ignore_errors=True)
    (root / typed).mkdir()
    with pytest.raises(InputError, match=rf"{typed} is no folder of this layout: is {meant} meant\?"):
        open_dataset(root, "nnunet")


@pytest.mark.parametrize(("labeled", "note"), [(0, "no patient has labels"), (1, "one patient has labels"), (2, None)])
def test_the_check_says_that_labels_are_too_few_to_train(labeled, note, tmp_path, capsys):
    root = write_nnunet(tmp_path, labeled=2, unlabeled=3)
    for path in sorted((root / "labelsTr").iterdir())[labeled:]:
        path.unlink()
    prepare.main(["check", str(root)])
    printed = capsys.readouterr().out
    assert (f"note: {note}" in printed) if note else ("training needs two" not in printed)


def test_channels_of_another_shape_and_unknown_labels_are_named_by_file(tmp_path, capsys):
    root = write_nnunet(tmp_path, channels=2)
    (image, _), label = case_images(1, 2)
    save_nifti(root / "imagesTr" / "heart_1_0001.nii.gz", image[:, :, :-1])
    save_nifti(root / "labelsTr" / "heart_2.nii.gz", label + 1)
    save_nifti(root / "imagesTr" / "heart_3_0001.nii.gz", np.full_like(image, 7))
    with pytest.raises(InputError) as error:
        prepare.main(["check", str(root)])
    message = str(error.value)
    assert "channel " + str(root / "imagesTr" / "heart_1_0001.nii.gz") + " has 31 x 32 x 4 voxels" in message
    assert "labelsTr/heart_2.nii.gz" in message and "unknown values 3" in message
    assert "heart_3_0001.nii.gz: every voxel is 7" in message


def test_from_three_labelled_and_twenty_unlabelled_cases_to_predicted_volumes(tmp_path, capsys):
    root = write_nnunet(tmp_path / "hearts", labeled=3, unlabeled=20)
    for number in (30, 31):
        save_nifti(root / "imagesTs" / f"heart_{number}_0000.nii.gz", case_images(number)[0][0])
    run = tmp_path / "run"
    prepare.main(["check", str(root)])
    train.main(["--data", str(root), f"--output={run}", *SHORT])
    predict.main([str(run), str(root / "imagesTs"), "-o", str(tmp_path / "out"), "--device=cpu"])
    printed = capsys.readouterr().out
    assert "taken for the format nnunet" in printed and "2 labelled" in printed and "20 unlabelled" in printed
    assert "its page: " in printed
    assert "no patient tests this run" in printed and not (run / "summary.json").exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["heart_30.nii.gz", "heart_31.nii.gz"]
    image, label = (
        nib.load(path) for path in (root / "imagesTs" / "heart_30_0000.nii.gz", tmp_path / "out" / "heart_30.nii.gz")
    )
    assert image.shape == label.shape and np.array_equal(image.affine, label.affine)
    with pytest.raises(InputError, match="no patient tests this run"):
        evaluate.main([str(run)])
    further = root / "imagesTs" / "heart_30_0001.nii.gz"
    save_nifti(further, case_images(30)[0][0])
    with pytest.raises(InputError, match="heart_30_0001 is named as a further channel of heart_30"):
        predict.main([str(run), str(root / "imagesTs"), "-o", str(tmp_path / "more"), "--device=cpu"])
    assert not (tmp_path / "more").exists()


def test_more_labels_asked_for_than_are_left_to_train(tmp_path):
    with pytest.raises(InputError, match="3 labelled patients asked for, but 2 of the 22 training patients"):
        split_of(write_nnunet(tmp_path, labeled=3, unlabeled=20), labeled=3)
