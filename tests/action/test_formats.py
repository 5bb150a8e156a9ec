"""The ACDC and LiTS layouts: what is found, in which order, and what is refused before an image is read."""

import json
import shutil

import pytest

from action.data import FORMATS, open_dataset
from action.data.cases import natural_sort
from action.errors import InputError


@pytest.fixture
def acdc(acdc_root, tmp_path):
    return shutil.copytree(acdc_root, tmp_path / "acdc")


@pytest.fixture
def lits(lits_root, tmp_path):
    return shutil.copytree(lits_root, tmp_path / "lits")


def test_acdc_frames_come_from_info_cfg(acdc_root):
    dataset = open_dataset(acdc_root, "acdc")
    assert dataset.class_names == ("background", "right ventricle", "myocardium", "left ventricle")
    names = [case.name for case in dataset.cases]
    assert names == natural_sort(names) and len(names) == 19
    assert [n for n in names if n.startswith("patient002")] == ["patient002_frame04", "patient002_frame11"]
    assert [n for n in names if n.startswith("patient003")] == ["patient003_frame01"]  # ED = ES: read once
    for case in dataset.cases:
        assert case.patient == case.name.split("_")[0]
        assert case.image.name == f"{case.name}.nii.gz" and case.label.name == f"{case.name}_gt.nii.gz"


def test_acdc_official_folders_and_uncompressed_files(acdc):
    (acdc / "training").mkdir()
    (acdc / "testing").mkdir()
    for number in range(1, 11):
        (acdc / f"patient{number:03d}").rename(
            acdc / ("training" if number < 8 else "testing") / f"patient{number:03d}"
        )
    path = acdc / "training" / "patient001" / "patient001_frame01.nii.gz"
    path.rename(path.with_suffix(""))
    dataset = open_dataset(acdc, "acdc")
    assert len(dataset.cases) == 19 and dataset.cases[0].image == path.with_suffix("")
    assert dataset.patients == [f"patient{n:03d}" for n in range(1, 11)]


def test_acdc_frame_without_a_label_is_unlabelled(acdc):
    (acdc / "patient001" / "patient001_frame09_gt.nii.gz").unlink()
    labels = {case.name: case.label for case in open_dataset(acdc, "acdc").cases}
    assert labels["patient001_frame09"] is None and labels["patient001_frame01"] is not None


def test_acdc_problems_are_all_named_at_once(acdc):
    (acdc / "patient001" / "Info.cfg").unlink()
    (acdc / "patient004" / "Info.cfg").write_text("ED: 1\nGroup: NOR\n")
    (acdc / "patient005" / "patient005_frame09.nii.gz").unlink()
    with pytest.raises(InputError) as error:
        open_dataset(acdc, "acdc")
    message = str(error.value)
    for part in ("3 problems", "patient001/Info.cfg", "patient004/Info.cfg", "patient005_frame09.nii.gz", "ES:"):
        assert part in message


def test_acdc_patient_in_two_folders(acdc):
    shutil.copytree(acdc / "patient001", acdc / "training" / "patient001")
    with pytest.raises(InputError, match="patient001 is there twice"):
        open_dataset(acdc, "acdc")


def test_lits_pairs_by_number_in_natural_order(lits_root):
    dataset = open_dataset(lits_root, "lits")
    assert dataset.class_names == ("background", "liver", "tumour")
    assert [case.name for case in dataset.cases] == [f"volume-{n}" for n in range(10)]
    for case in dataset.cases:
        assert case.patient == case.name
        assert case.label.name == case.image.name.replace("volume", "segmentation")


def test_lits_natural_order_beyond_nine(lits):
    for kind in ("volume", "segmentation"):
        (lits / f"{kind}-1.nii").rename(lits / f"{kind}-101.nii")
        (lits / f"{kind}-2.nii").rename(lits / f"{kind}-11.nii")
    names = [case.name for case in open_dataset(lits, "lits").cases]
    assert names == [f"volume-{n}" for n in (0, 3, 4, 5, 6, 7, 8, 9, 11, 101)]


def test_lits_volume_without_segmentation_is_unlabelled_but_not_the_reverse(lits):
    (lits / "segmentation-3.nii").unlink()
    assert open_dataset(lits, "lits").cases[3].label is None
    (lits / "volume-4.nii").unlink()
    with pytest.raises(InputError, match=r"segmentation-4\.nii has no volume-4"):
        open_dataset(lits, "lits")


def test_lits_volume_that_is_there_twice(lits):
    shutil.copy(lits / "volume-0.nii", lits / "batch2" / "volume-0.nii")
    with pytest.raises(InputError, match="volume-0 is there twice"):
        open_dataset(lits, "lits")


@pytest.mark.parametrize("format", FORMATS)
def test_folders_without_patients(tmp_path, format):
    with pytest.raises(InputError, match="no patients in"):
        open_dataset(tmp_path, format)
    with pytest.raises(InputError, match=r"absent does not exist"):
        open_dataset(tmp_path / "absent", format)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"):
        open_dataset(tmp_path / "file", format)


def test_unknown_format_lists_the_known(tmp_path):
    with pytest.raises(InputError, match="'dicom': choose one of acdc, lits"):
        open_dataset(tmp_path, "dicom")


@pytest.mark.parametrize("file", ["dataset.json", "manifest.json"])
def test_class_names_of_the_data_set_itself(acdc, file):
    (acdc / file).write_text(json.dumps({"classes": ["background", "liver"], "other": 1}))
    assert open_dataset(acdc, "acdc").class_names == ("background", "liver")


def test_a_json_file_without_classes_changes_nothing(acdc):
    (acdc / "dataset.json").write_text(json.dumps({"labels": {"background": 0}}))
    assert len(open_dataset(acdc, "acdc").class_names) == 4


@pytest.mark.parametrize(
    "content", ["{", '{"classes": "liver"}', '{"classes": ["one"]}', '{"classes": ["a", "b", "a"]}']
)
def test_unusable_class_names(acdc, content):
    (acdc / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=r"dataset\.json"):
        open_dataset(acdc, "acdc")
