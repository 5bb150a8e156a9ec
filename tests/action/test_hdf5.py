"""The HDF5 layout of the public benchmark: what is found, its lists, its faults by name, and training on it."""

import json
import shutil
import sys

import nibabel as nib
import numpy as np
import pytest
from layouts import SHORT, case_images, write_hdf5

from action import evaluate, predict, prepare, train
from action.config import InputConfig
from action.data import open_dataset
from action.data.split import make_split
from action.data.volumes import load_case
from action.errors import InputError

h5py = pytest.importorskip("h5py")


@pytest.fixture
def root(tmp_path):
    return write_hdf5(tmp_path / "benchmark")


def split_of(root, **arguments):
    dataset = open_dataset(root, "hdf5")
    return make_split(dataset.cases, labeled=1, seed=0, prescribed=dataset.find_sets(0), **arguments)


@pytest.mark.parametrize("slices", ["data/slices", "data"])
def test_slices_are_put_together_and_frames_belong_to_a_patient(tmp_path, slices):
    root = write_hdf5(tmp_path, slices=slices)
    dataset = open_dataset(root, "hdf5")
    assert dataset.class_names == ("background", "right ventricle", "myocardium", "left ventricle")
    assert dataset.patients == [f"patient{number:03d}" for number in range(1, 6)]
    first, last = dataset.cases[0], dataset.cases[-1]
    assert (first.name, len(first.images), last.name, len(last.images)) == (
        "patient001_frame01",
        4,
        "patient005_frame12",
        1,
    )
    for case, seed in ((first, 101), (last, 512)):
        (image,), label = case_images(seed)
        loaded = load_case(case, 4, InputConfig((1.0, 1.0)))
        low, high = np.quantile(image, [0.005, 0.995])
        assert np.allclose(loaded.image[:, 0], np.clip((image - low) / (high - low), 0, 1), atol=0.01)
        assert np.array_equal(loaded.truth, label) and not loaded.volume.sized


def test_the_tenth_slice_comes_after_the_ninth(tmp_path):
    root = write_hdf5(tmp_path)
    for number, path in enumerate(sorted((root / "data" / "slices").glob("patient001_frame01_*"))):
        path.rename(path.with_name(f"patient001_frame01_slice_{number + 8}.h5"))
    names = [f"patient001_frame01_slice_{number}" for number in (10, 8, 11, 9)]
    rest = [name for name in (root / "train_slices.list").read_text().split() if "001_frame01" not in name]
    (root / "train_slices.list").write_text("\n".join(name + ".h5" for name in [*names, *rest]))
    case = open_dataset(root, "hdf5").cases[0]
    assert [path.stem.rsplit("_")[-1] for path in case.images] == ["8", "9", "10", "11"]
    assert np.array_equal(load_case(case, 4, InputConfig((1.0, 1.0))).truth, case_images(101)[1])


def test_the_lists_are_the_sets(root):
    split = split_of(root)
    assert sorted([*split.labeled, *split.unlabeled]) == ["patient001", "patient002", "patient003"]
    assert (split.validation, split.test) == (("patient004",), ("patient005",))
    assert split_of(root, order="list").labeled == ("patient001",)
    (root / "test.list").unlink()
    assert split_of(root).test == ()


def test_without_lists_every_file_is_read(tmp_path):
    dataset = open_dataset(write_hdf5(tmp_path, lists=False), "hdf5")
    assert len(dataset.cases) == 10 and len(dataset.cases[0].images) == 4 and dataset.find_sets(0).train is None


def test_files_without_a_label_are_unlabelled(root):
    for path in (root / "data" / "slices").glob("patient002_*"):
        with h5py.File(path, "a") as file:
            del file["label"]
    labels = {case.name: case.label for case in open_dataset(root, "hdf5").cases}
    assert labels["patient002_frame01"] is None and labels["patient001_frame01"] is not None


def changed(path, key, value):
    with h5py.File(path, "a") as file:
        del file[key]
        if value is not None:
            file[key] = value


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("image", None, "has no data set 'image', but 'label'"),
        ("image", np.zeros((4, 32)), "4 x 32 in"),
        ("image", np.zeros((2, 3, 4, 5)), "'image' is 2 x 3 x 4 x 5 of type float64"),
        ("image", np.full((32, 32), np.nan), "NaN or infinite"),
        ("label", np.zeros((32, 31)), "they must match|slices of one volume"),
        ("label", np.full((32, 32), 9), "unknown values 9"),
    ],
)
def test_faults_are_named_by_file(root, key, value, words):
    path = root / "data" / "slices" / "patient001_frame01_slice_1.h5"
    changed(path, key, value)
    with pytest.raises(InputError, match=words) as error:
        prepare.main(["check", str(root)])
    assert "patient001_frame01_slice_" in str(error.value)


def test_a_damaged_file_is_named(root):
    path = root / "data" / "patient005_frame01.h5"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"patient005_frame01\.h5 cannot be read as HDF5"):
        open_dataset(root, "hdf5")


def test_lists_that_do_not_go_with_the_files(root):
    (root / "data" / "patient005_frame01.h5").unlink()
    (root / "data" / "slices" / "patient001_frame01_slice_1.h5").unlink()
    with (root / "train_slices.list").open("a") as file:
        file.write("patient009_frame01\n")
    with (root / "val.list").open("a") as file:
        file.write("patient005_frame12\n")
    with pytest.raises(InputError) as error:
        open_dataset(root, "hdf5")
    for part in (
        "test.list names patient005_frame01, but there is no data/patient005_frame01.h5",
        "train_slices.list names patient001_frame01_slice_1, but there is no",
        "train_slices.list names patient009_frame01, which is no slice",
        "test.list names patient005_frame12, which another list names",
    ):
        assert part in str(error.value)
    (root / "val.list").unlink()
    with pytest.raises(InputError, match=r"val\.list is missing or empty"):
        open_dataset(root, "hdf5")


def test_frames_of_a_patient_in_two_sets(root):
    for key, name in (("val", "patient004_frame01"), ("test", "patient004_frame12")):
        (root / f"{key}.list").write_text(f"{name}\n")
    with pytest.raises(InputError, match="patient004 are in several sets"):
        split_of(root)


def test_without_h5py_the_extra_is_named(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"action-contrast\[hdf5\]"):
        open_dataset(root, "hdf5")


def test_from_data_to_summary_and_predictions(root, tmp_path, capsys):
    run = tmp_path / "run"
    train.main(["--data", str(root), f"--output={run}", *SHORT])
    printed = capsys.readouterr().out
    assert "taken for the format hdf5" in printed and "HD95 voxels" in printed
    summary = json.loads((run / "summary.json").read_text())
    assert summary["unit"] == "voxels" and set(summary["cases"]) == {"patient005_frame01", "patient005_frame12"}
    evaluate.main([str(run), "--overwrite", "--device=cpu"])
    image = shutil.copy(root / "data" / "patient005_frame01.h5", tmp_path / "new.h5")
    predict.main([str(run), str(image), "-o", str(tmp_path / "out"), "--device=cpu"])
    written = nib.load(tmp_path / "out" / "new.nii.gz")
    assert written.shape == (32, 32, 4)
    same = nib.load(run / "predictions" / "patient005_frame01.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(same.dataobj))
