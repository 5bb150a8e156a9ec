"""Converting between layouts: round trips keep voxels, labels, geometry, sets; nothing is overwritten or left half."""

import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import save_nifti
from layouts import SHORT, case_images, write_folders, write_hdf5, write_nnunet

from action import prepare, train
from action.data import FORMATS, open_dataset
from action.data.conversion import convert
from action.data.reading import read_channels, read_label
from action.data.writing import WRITERS
from action.data.writing.contents import contents_of
from action.errors import InputError

TO_AND_FRO = [
    (a, b)
    for a in ("acdc", "lits", "nnunet", "folders", "hdf5")
    for b in ("acdc", "lits", "nnunet", "folders", "hdf5")
    if a != b
]
SETS = {
    "acdc": [[f"patient{n:03d}" for n in (9, 1, 2, 3, 4, 5, 6)], ["patient007"], ["patient008", "patient010"]],
    "lits": [[f"volume-{n}" for n in (8, 0, 1, 2, 3, 4)], ["volume-5"], ["volume-6", "volume-7", "volume-9"]],
    "folders": [["scan7", "scan2", "scan1", "scan6"], ["scan3"], ["scan4", "scan5"]],
}


@pytest.fixture
def source(acdc_root, lits_root, tmp_path):
    """A data set of a layout, with sets of its own."""

    def make(name):
        root = tmp_path / "source"
        if name == "hdf5":
            pytest.importorskip("h5py")
            return open_dataset(write_hdf5(root), name)
        if name == "nnunet":
            write_nnunet(root, test=2)
            fold = {"train": ["heart_3", "heart_1", "heart_2"], "val": ["heart_4", "heart_5"]}
            (root / "splits_final.json").write_text(json.dumps([fold]))
            return open_dataset(root, name)
        if name == "folders":
            write_folders(root, labeled=5, unlabeled=2)
        else:
            shutil.copytree({"acdc": acdc_root, "lits": lits_root}[name], root)
        sets = dict(zip(("train", "validation", "test"), SETS[name], strict=True))
        (root / "split.json").write_text(json.dumps(sets))
        return open_dataset(root, name)

    return make


def test_every_layout_can_be_read_and_written():
    assert WRITERS.keys() == FORMATS.keys()


def there(dataset):
    """Of every case the voxels, the label, the voxel size and the affine."""
    found = {}
    for case in dataset.cases:
        image = next(read_channels(case))
        label = read_label(case, image, len(dataset.class_names))
        found[case.name] = (image.array, label, image.spacing, image.affine)
    return found


@pytest.mark.filterwarnings("ignore:.*affine differs")
@pytest.mark.parametrize(("layout", "to"), TO_AND_FRO, ids=[f"{a}-{b}" for a, b in TO_AND_FRO])
def test_there_and_back(source, tmp_path, layout, to):
    if "hdf5" in (layout, to):
        pytest.importorskip("h5py")
    dataset = source(layout)
    convert(dataset, tmp_path / "there", to)
    middle = open_dataset(tmp_path / "there", to)
    names_file = tmp_path / "there" / "names.json"
    original = json.loads(names_file.read_text()) if names_file.exists() else {}
    before = there(dataset)
    sized = "hdf5" not in (layout, to)
    for name, (image, label, spacing, affine) in there(middle).items():
        expected = before[original.get(name, name)]
        assert np.array_equal(image, expected[0]) and np.array_equal(label, expected[1])
        if sized:
            assert spacing == expected[2] and np.array_equal(affine, expected[3])
        else:
            assert spacing == (1, 1, 1)
    assert middle.class_names == dataset.class_names and len(middle.cases) == len(dataset.cases)
    assert membership(middle, original) == membership(dataset, {})
    convert(middle, tmp_path / "back", layout)
    back = open_dataset(tmp_path / "back", layout)
    assert [case.label is None for case in back.cases] == [case.label is None for case in dataset.cases]
    assert [len(case.images) for case in back.cases] == [len(case.images) for case in dataset.cases]
    for one, other in zip(there(back).values(), before.values(), strict=True):
        assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


def membership(dataset, original):
    """The cases of each set, by their original names."""
    contents = contents_of(dataset)
    assert contents.divided
    keys = ("train", "validation", "test")
    return {key: {original.get(case.name, case.name) for case in contents.members(key)} for key in keys}


def test_the_order_of_the_training_patients_is_kept(source, tmp_path):
    dataset = source("acdc")
    convert(dataset, tmp_path / "folders", "folders")
    assert contents_of(open_dataset(tmp_path / "folders", "folders")).sets.train == tuple(SETS["acdc"][0])


def test_files_are_copied_as_they_are(source, tmp_path):
    dataset = source("lits")
    convert(dataset, tmp_path / "new", "nnunet")
    packed = tmp_path / "new" / "imagesTr" / "volume-8_0000.nii.gz"
    assert packed.read_bytes() == dataset.cases[8].image.read_bytes()
    image = nib.load(tmp_path / "new" / "imagesTr" / "volume-0_0000.nii.gz")  # this one was not compressed
    assert image.header == nib.load(dataset.cases[0].image).header


def test_channels_fit_into_one_layout(tmp_path):
    dataset = open_dataset(write_nnunet(tmp_path / "two", channels=2), "nnunet")
    for to in WRITERS.keys() - {"nnunet"}:
        with pytest.raises(InputError, match=f"heart_1 has 2 channels, but the format {to} holds one"):
            convert(dataset, tmp_path / "new", to)
    assert not (tmp_path / "new").exists()


def test_a_patient_with_three_frames_is_none_of_acdc_s(tmp_path):
    root = write_folders(tmp_path / "data")
    for number in (1, 2, 3):
        save_nifti(root / "images" / f"heart_frame{number:02d}.nii.gz", case_images(number)[0][0])
    with pytest.raises(InputError, match="heart has 3 cases, but ACDC's layout holds two"):
        convert(open_dataset(root, "folders"), tmp_path / "new", "acdc")


def test_patients_that_become_several_are_said(source, tmp_path, capsys):
    dataset = source("acdc")
    prepare.main(["convert", str(dataset.root), str(tmp_path / "new"), "--to", "lits"])
    printed = capsys.readouterr().out
    assert "note: the format lits knows no patients, so that 10 have become 19" in printed
    assert "names.json" in printed and "19 cases in" in printed
    assert json.loads((tmp_path / "new" / "names.json").read_text())["volume-0"] == "patient001_frame01"


def test_nothing_is_overwritten(source, tmp_path):
    dataset = source("folders")
    for number, name in enumerate(("file", "full", "link")):
        target = tmp_path / name
        if number == 0:
            target.write_text("kept")
        elif number == 1:
            (target / "imagesTr").mkdir(parents=True)
        else:
            target.symlink_to(tmp_path / "nowhere")
        with pytest.raises(InputError, match="nothing is ever overwritten"):
            convert(dataset, target, "nnunet")
    with pytest.raises(InputError, match="lies in the data set"):
        convert(dataset, dataset.root / "new", "nnunet")
    with pytest.raises(InputError, match="has the format folders already"):
        convert(dataset, tmp_path / "new", "folders")
    (tmp_path / "empty").mkdir()
    convert(dataset, tmp_path / "empty", "nnunet")
    assert len(open_dataset(tmp_path / "empty", "nnunet").cases) == 7


def test_what_a_killed_conversion_left_is_removed(source, tmp_path):
    left = tmp_path / ".partial-1-new" / "labelsTr"
    left.mkdir(parents=True)
    for path in (left, left.parent):
        os.utime(path, ns=(1, 1))
    convert(source("folders"), tmp_path / "new", "nnunet")
    assert not list(tmp_path.glob(".partial-*")) and len(open_dataset(tmp_path / "new", "nnunet").cases) == 7


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interruption_leaves_nothing(source, tmp_path, monkeypatch, error):
    dataset, calls = source("folders"), []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise error

    monkeypatch.setattr("action.data.writing.nnunet.put_image", interrupted)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error):
        convert(dataset, tmp_path / "new", "nnunet")
    assert sorted(tmp_path.iterdir()) == before and len(calls) == 3


def test_a_damaged_source_is_named_and_leaves_nothing(source, tmp_path):
    pytest.importorskip("h5py")
    dataset = source("folders")
    (dataset.root / "images" / "scan4.nii.gz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"scan4\.nii\.gz cannot be read"):
        convert(dataset, tmp_path / "new", "hdf5")
    assert not (tmp_path / "new").exists()


def test_a_converted_data_set_trains_to_the_same_weights(source, tmp_path):
    dataset = source("lits")
    convert(dataset, tmp_path / "new", "nnunet")
    tables = []
    for name, root in (("a", dataset.root), ("b", tmp_path / "new")):
        train.main(["--data", str(root), f"--output={tmp_path / name}", *SHORT])
        tables.append((tmp_path / name / "metrics.csv").read_text())
    assert tables[0] == tables[1]
