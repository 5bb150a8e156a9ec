"""``--format auto``: every layout is taken for what it is, and what is not clear is asked about."""

import shutil

import pytest
from layouts import write_folders, write_hdf5, write_nnunet

from action.config import TrainConfig
from action.data import FORMATS, open_dataset
from action.data.cases import Case
from action.data.split import make_split
from action.errors import InputError
from action.experiment import resolve


def test_each_layout_is_recognised(acdc_root, lits_root, tmp_path):
    roots = {
        "acdc": acdc_root,
        "lits": lits_root,
        "nnunet": write_nnunet(tmp_path / "nnunet"),
        "folders": write_folders(tmp_path / "folders"),
    }
    for name, root in roots.items():
        assert [known for known, layout in FORMATS.items() if layout.recognises(root)] == [name]
        assert open_dataset(root, "auto").format == name
        assert open_dataset(root, "auto").cases == open_dataset(root, name).cases


def test_hdf5_is_recognised(tmp_path):
    pytest.importorskip("h5py")
    assert open_dataset(write_hdf5(tmp_path), "auto").format == "hdf5"


def test_a_folder_of_nothing_known_says_what_is_looked_for(tmp_path):
    (tmp_path / "scan.dcm").touch()
    with pytest.raises(InputError) as error:
        open_dataset(tmp_path, "auto")
    for name, layout in FORMATS.items():
        assert f"{name}: {layout.looks_for}" in str(error.value)


def test_the_folder_that_was_meant_is_named(tmp_path):
    root = write_nnunet(tmp_path / "all" / "hearts").resolve()
    for given in (root / "imagesTr", root / "labelsTr", root.parent):
        with pytest.raises(InputError) as error:
            open_dataset(given, "auto")
        assert f"{root} looks like nnunet: is it meant?" in str(error.value)


def test_a_folder_of_dicom_files_is_told_what_to_do(tmp_path):
    (tmp_path / "anna" / "series").mkdir(parents=True)
    (tmp_path / "anna" / "series" / "0001.dcm").write_bytes(bytes(200))
    with pytest.raises(InputError, match="DICOM files: convert them to NIfTI"):
        open_dataset(tmp_path, "auto")


def test_a_folder_of_two_layouts_asks_which(acdc_root, tmp_path):
    root = write_folders(shutil.copytree(acdc_root, tmp_path / "both"))
    with pytest.raises(InputError, match="looks like acdc and like folders: say which with --format"):
        open_dataset(root, "auto")
    assert len(open_dataset(root, "acdc").cases) == 19


def test_what_is_wrong_in_a_recognised_folder_is_said(tmp_path):
    root = write_nnunet(tmp_path)
    (root / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"dataset\.json cannot be read"):
        open_dataset(root, "auto")


def test_a_run_keeps_the_format_that_was_recognised(lits_root, tmp_path, capsys):
    config = resolve(TrainConfig(data=str(lits_root), output=str(tmp_path / "run")))
    assert config.format == "lits" and "taken for the format lits" in capsys.readouterr().out


def cases(labeled, unlabeled):
    names = [f"p{number}" for number in range(labeled + unlabeled)]
    return [Case(n, n, n, n if i < labeled else None) for i, n in enumerate(names)]


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "sizes"),
    [(2, 5, (6, 1, 0)), (3, 20, (22, 1, 0)), (4, 20, (22, 1, 1)), (10, 100, (107, 1, 2)), (3, 0, (1, 1, 1))],
)
def test_patients_without_labels_train_and_the_others_are_divided(labeled, unlabeled, sizes):
    split = make_split(cases(labeled, unlabeled), labeled=1, seed=0)
    assert (len(split.labeled + split.unlabeled), len(split.validation), len(split.test)) == sizes
    assert {f"p{number}" for number in range(labeled, labeled + unlabeled)} <= set(split.unlabeled)


def test_one_labelled_patient_is_too_few():
    with pytest.raises(InputError, match="1 patient with labels is too few.*label more"):
        make_split(cases(1, 9), labeled=1, seed=0)


def test_a_test_set_can_be_left_empty():
    split = make_split(cases(10, 0), (0.8, 0.2, 0.0), labeled=1, seed=0)
    assert (len(split.validation), split.test) == (2, ())
    split = make_split(cases(10, 4), (12, 2, 0), labeled=1, seed=0)
    assert (len(split.validation), len(split.unlabeled), split.test) == (2, 11, ())
