"""Predicting and evaluating replace nothing unasked and stop before they compute where something is amiss."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from action import evaluate, predict, train
from action.errors import InputError

SHORT = ["--method=supervised", "--labeled=2", "--baseline.iterations=1", "--model.channels=[4,6,8]", "--device=cpu"]


@pytest.fixture(scope="module")
def finished(acdc_root, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "whole"
    train.main(["--data", str(acdc_root), *SHORT, "--output", str(output)])
    return output


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def image(acdc_root, tmp_path):
    return Path(shutil.copy(sorted(acdc_root.glob("*/*_frame01.nii.gz"))[0], tmp_path / "a.nii.gz"))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def call(run, *images, output, flags=()):
    predict.main([str(run), *map(str, images), "-o", str(output), "--device=cpu", *flags])


def test_predict_replaces_only_when_told_to(finished, image, tmp_path):
    output = tmp_path / "labels"
    output.mkdir()
    (output / "a.nii.gz").write_bytes(b"drawn by hand")
    with pytest.raises(InputError, match="--overwrite"):
        call(finished, image, output=output)
    assert (output / "a.nii.gz").read_bytes() == b"drawn by hand"
    call(finished, image, output=output, flags=["--overwrite"])
    assert (output / "a.nii.gz").read_bytes() != b"drawn by hand"


@pytest.mark.parametrize("name", ["a.nii", "A/a.nii.gz", "a.NII.GZ"])
def test_two_images_never_share_a_target(finished, image, tmp_path, name):
    other = tmp_path / name
    other.parent.mkdir(exist_ok=True)
    shutil.copy(image, other)
    with pytest.raises(InputError, match="twice"):
        call(finished, image, other, output=tmp_path / "out", flags=["--overwrite"])
    assert not (tmp_path / "out").exists()


def test_predict_never_replaces_another_image_of_the_call(finished, image, tmp_path):
    (tmp_path / "b").mkdir()
    other = Path(shutil.copy(image, tmp_path / "b" / "c.nii.gz"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.nii.gz").hardlink_to(other)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="would be replaced"):
        call(finished, image, other, output=tmp_path / "out", flags=["--overwrite"])
    assert contents(tmp_path) == before


def test_evaluate_replaces_results_only_when_told_to(copy, finished):
    before = contents(copy)
    with pytest.raises(InputError, match="--overwrite"):
        evaluate.main([str(copy)])
    assert contents(copy) == before
    evaluate.main([str(copy), "--overwrite", "--device=cpu"])
    assert (copy / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()


def without_patient(data, test):
    shutil.rmtree(data / test[0])
    return test[0]


def without_label(data, test):
    next((data / test[-1]).glob("*_gt.nii.gz")).unlink()
    return test[-1]


def other_patients(data, test):
    for folder in data.glob("patient*"):
        for path in folder.iterdir():
            path.rename(path.with_name(path.name.replace("patient", "patient9")))
        folder.rename(folder.with_name(folder.name.replace("patient", "patient9")))
    return test[0]


def other_classes(data, test):
    (data / "dataset.json").write_text(json.dumps({"classes": ["background", "a", "b", "c"]}))
    return "classes background, a, b, c"


def without_foreground(data, test):
    for patient in test:
        for path in (data / patient).glob("*_gt.nii.gz"):
            label = nib.load(path)
            nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), path)
    return "any class but the background"


def absent(data, test):
    shutil.rmtree(data)
    return "--data"


@pytest.mark.parametrize(
    "change", [without_patient, without_label, other_patients, other_classes, without_foreground, absent]
)
def test_evaluate_refuses_other_data_and_writes_nothing(change, copy, acdc_root, tmp_path):
    data = Path(shutil.copytree(acdc_root, tmp_path / "data"))
    word = change(data, json.loads((copy / "split.json").read_text())["test"])
    before = contents(copy)
    with pytest.raises(InputError, match=word):
        evaluate.main([str(copy), "--data", str(data), "--overwrite", "--device=cpu"])
    assert contents(copy) == before


def test_evaluate_refuses_an_image_that_is_its_own_target(copy, acdc_root, tmp_path):
    data = Path(shutil.copytree(acdc_root, tmp_path / "data"))
    target = sorted((copy / "predictions").iterdir())[0]
    source = next(data.glob(f"*/{target.name}"))
    target.unlink()
    target.hardlink_to(source)
    before = contents(copy)
    with pytest.raises(InputError, match="would be replaced"):
        evaluate.main([str(copy), "--data", str(data), "--overwrite", "--device=cpu"])
    assert contents(copy) == before


def test_distances_are_in_voxels_where_files_have_no_voxel_size(copy, acdc_root, tmp_path, capsys):
    data = Path(shutil.copytree(acdc_root, tmp_path / "data"))
    assert json.loads((copy / "summary.json").read_text())["unit"] == "mm"
    for path in data.glob("*/*_frame*.nii.gz"):
        nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), np.eye(4)), path)
    evaluate.main([str(copy), "--data", str(data), "--overwrite", "--device=cpu"])
    printed = capsys.readouterr().out
    assert "ASD voxels" in printed and "HD95 voxels" in printed and "ASD mm" not in printed
    assert json.loads((copy / "summary.json").read_text())["unit"] == "voxels"
