"""A folder of images and a folder of labels: what is found, how classes are called, and training on it."""

import json

import numpy as np
import pytest
from conftest import save_nifti
from layouts import SHORT, case_images, write_folders

from action import predict, prepare, train
from action.data import open_dataset
from action.errors import InputError


def test_images_and_labels_are_matched_by_name(tmp_path):
    root = write_folders(tmp_path, labeled=2, unlabeled=9)
    (root / "labels" / "scan1.nii.gz").rename(root / "labels" / "kept")
    save_nifti(root / "labels" / "scan1.nii", case_images(1)[1])
    (root / "images" / "notes.txt").touch()
    cases = open_dataset(root, "folders").cases
    assert [case.name for case in cases] == [f"scan{number}" for number in range(1, 12)]
    assert [case.label.name for case in cases[:2]] == ["scan1.nii", "scan2.nii.gz"]
    assert all(case.label is None for case in cases[2:])


def test_classes_are_called_by_their_values_or_by_names(tmp_path):
    root = write_folders(tmp_path)
    assert open_dataset(root, "folders").class_names == ("background", "1", "2")
    (root / "dataset.json").write_text(json.dumps({"classes": ["background", "wall", "chamber"]}))
    assert open_dataset(root, "folders").class_names == ("background", "wall", "chamber")


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda label: 255 * (label > 0), "0, 255"),
        (lambda label: label + 1, "0, 1, 2, 3"),
        (lambda label: label - 1.0, "-1, 0, 1"),
        (lambda label: label / 2, "0, 0.5, 1"),
        (lambda label: 0 * label, "values 0: number"),
    ],
)
def test_values_that_are_no_classes(tmp_path, change, shown):
    root = write_folders(tmp_path)
    for number in range(1, 6):
        label = change(case_images(number)[1].astype(np.float32)).astype(np.float32)
        save_nifti(root / "labels" / f"scan{number}.nii.gz", label)
    if shown == "0, 1, 2, 3":  # none is 0, but that is the background
        assert open_dataset(root, "folders").class_names == ("background", "1", "2", "3")
        return
    with pytest.raises(InputError, match=shown) as error:
        open_dataset(root, "folders")
    assert "dataset.json" in str(error.value) and str(root / "labels") in str(error.value)


def test_a_label_that_changes_is_read_again(tmp_path):
    root = write_folders(tmp_path)
    assert len(open_dataset(root, "folders").class_names) == 3
    label = case_images(1)[1]
    label[0, 0, 0] = 3
    save_nifti(root / "labels" / "scan1.nii.gz", label)
    assert len(open_dataset(root, "folders").class_names) == 4


def test_problems_are_all_named_at_once(tmp_path):
    root = write_folders(tmp_path)
    (root / "images" / "scan1.nii.gz").unlink()
    save_nifti(root / "images" / "scan2.nii", case_images(2)[0][0])
    (root / "images" / "scan9.nii.gz").symlink_to("/no/such/target")
    with pytest.raises(InputError) as error:
        open_dataset(root, "folders")
    for part in ("labels/scan1.nii.gz has no image", "scan2.nii.gz are both there", "scan9.nii.gz is a link to /no"):
        assert part in str(error.value)


def test_damaged_labels_are_named(tmp_path):
    root = write_folders(tmp_path)
    (root / "labels" / "scan3.nii.gz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"scan3\.nii\.gz cannot be read"):
        open_dataset(root, "folders")


def test_from_data_to_summary_and_predictions(tmp_path, capsys):
    root = write_folders(tmp_path / "data", labeled=5, unlabeled=2)
    run = tmp_path / "run"
    prepare.main(["check", str(root)])
    train.main(["--data", str(root), f"--output={run}", *SHORT])
    assert set(json.loads((run / "summary.json").read_text())["classes"]) == {"1", "2"}
    assert "taken for the format folders" in capsys.readouterr().out
    predict.main([str(run), str(root / "images"), "-o", str(tmp_path / "out"), "--device=cpu"])
    assert len(list((tmp_path / "out").iterdir())) == 7
