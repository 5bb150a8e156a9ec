"""The ACDC and LiTS layouts: what is found, in which order, and what is refused before an image is read."""

import codecs
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from action.data import FORMATS, open_dataset
from action.data.cases import natural_sort
from action.data.nifti import read_image, write_label
from action.data.split import load_split, make_split
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
    with pytest.raises(InputError, match=f"'dicom': choose one of {', '.join(FORMATS)}"):
        open_dataset(tmp_path, "dicom")


@pytest.mark.parametrize("file", ["dataset.json", "manifest.json"])
def test_class_names_of_the_data_set_itself(acdc, file):
    (acdc / file).write_text(json.dumps({"classes": ["background", "liver"], "other": 1}))
    assert open_dataset(acdc, "acdc").class_names == ("background", "liver")


def test_a_json_file_without_classes_changes_nothing(acdc):
    (acdc / "dataset.json").write_text(json.dumps({"name": "hearts", "numTraining": 10}))
    assert len(open_dataset(acdc, "acdc").class_names) == 4


@pytest.mark.parametrize(
    "content", ["{", '{"classes": "liver"}', '{"classes": ["one"]}', '{"classes": ["a", "b", "a"]}']
)
def test_unusable_class_names(acdc, content):
    (acdc / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=r"dataset\.json"):
        open_dataset(acdc, "acdc")


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "heart": 1, "vessel": 2},
        {"vessel": 2, "background": 0, "heart": 1},
        {"0": "background", "1": "heart", "2": "vessel"},
        {"2": "vessel", "0": "background", "1": "heart"},
    ],
)
def test_class_names_of_nnunet(acdc, labels):
    (acdc / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "MRI"}}))
    assert open_dataset(acdc, "acdc").class_names == ("background", "heart", "vessel")


def test_classes_come_before_labels(acdc):
    content = {"classes": ["background", "liver"], "labels": {"background": 0, "whole": [1, 2]}}
    (acdc / "dataset.json").write_text(json.dumps(content))
    assert open_dataset(acdc, "acdc").class_names == ("background", "liver")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"background": 0, "whole": [1, 2], "core": [2]}, "regions"),
        ({"background": 0, "heart": 1, "ignore": 2}, "'ignore'"),
        ({"background": 0, "heart": 2}, "without gaps"),
        ({"background": 1, "heart": 0}, "without gaps"),
        ({"background": 0, "heart": 1, "vessel": 1}, "without gaps"),
        ({"background": 0, "heart": True}, "without gaps"),
        ({"background": 0, "heart": 1.0}, "without gaps"),
        ({"background": 0}, "without gaps"),
        ({"0": "background", "1": "background"}, "without gaps"),
        ({"0": "background", "1": ""}, "without gaps"),
        (["background", "heart"], "must map names"),
        ({}, "without gaps"),
    ],
)
def test_unusable_labels_of_nnunet(acdc, labels, words):
    (acdc / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(InputError, match=words) as error:
        open_dataset(acdc, "acdc")
    assert "dataset.json" in str(error.value) and "classes" in str(error.value)


def test_what_other_programs_leave_is_no_data(lits, acdc):
    for folder in ("__MACOSX", ".Trash-1000/files", "$RECYCLE.BIN", ".hidden", "batch2/.snapshot", "@eaDir"):
        (lits / folder).mkdir(parents=True)
        shutil.copy(lits / "volume-0.nii", lits / folder / "volume-0.nii")
        shutil.copy(lits / "segmentation-0.nii", lits / folder / "segmentation-77.nii")
    for path in list(lits.glob("*.nii")):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
    assert [case.name for case in open_dataset(lits, "lits").cases] == [f"volume-{n}" for n in range(10)]
    (acdc / ".patient099").mkdir()
    (acdc / "__MACOSX" / "patient001").mkdir(parents=True)
    (acdc / "patients.xlsx").touch()
    (acdc / "patient001" / "._patient001_frame01.nii.gz").touch()
    (acdc / "patient001" / "._Info.cfg").touch()
    assert len(open_dataset(acdc, "acdc").cases) == 19


@pytest.mark.parametrize("sign", ["checkpoints/latest.pt", "split.json"])
def test_predictions_of_a_run_below_the_data_are_no_data(lits, sign):
    for run in (lits, lits / "run", lits / "batch2" / "deeper" / "run"):
        (run / "predictions").mkdir(parents=True)
        (run / sign).parent.mkdir(exist_ok=True)
        (run / sign).touch()
        (run / "config.yaml").touch()
        shutil.copy(lits / "volume-0.nii", run / "predictions" / "volume-0.nii")
    assert [case.name for case in open_dataset(lits, "lits").cases] == [f"volume-{n}" for n in range(10)]


def test_data_beside_a_run_are_data(lits):
    (lits / "batch2" / "config.yaml").touch()
    (lits / "batch2" / "split.json").touch()
    assert len(open_dataset(lits, "lits").cases) == 10
    (lits / "batch2").rename(lits / "predictions")  # of no run: a name like any other
    (lits / "predictions" / "config.yaml").unlink()
    assert len(open_dataset(lits, "lits").cases) == 10


@pytest.mark.parametrize("end", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_written_prediction_is_never_an_image(lits, end, kind):
    image = nib.load(lits / "volume-3.nii")
    nib.save(kind(image.get_fdata(), image.affine), lits / "volume-3.nii")
    volume = read_image(lits / "volume-3.nii")
    (lits / "elsewhere").mkdir()
    written = lits / "elsewhere" / f"volume-3{end}"
    write_label(written, np.ones(volume.array.shape, np.uint8), volume)
    cases = open_dataset(lits, "lits").cases
    assert cases[3].image == lits / "volume-3.nii" and len(cases) == 10
    with pytest.raises(InputError, match="is a prediction"):
        read_image(written)
    written.rename(lits / f"volume-12{end}")
    assert len(open_dataset(lits, "lits").cases) == 10


def test_upper_case_suffixes(lits, acdc):
    for name in ("volume-0.nii", "segmentation-0.nii", "batch2/volume-7.nii.gz", "batch2/segmentation-7.nii.gz"):
        stem, suffix = name.split(".", 1)
        (lits / name).rename(lits / f"{stem}.{suffix.upper()}")
    cases = open_dataset(lits, "lits").cases
    assert len(cases) == 10 and all(case.label is not None for case in cases)
    assert cases[0].image.name == "volume-0.NII" and cases[7].label.name == "segmentation-7.NII.GZ"
    folder = acdc / "patient001"
    for path in list(folder.iterdir()):
        stem, suffix = path.name.split(".", 1)
        path.rename(folder / f"{stem}.{suffix.upper()}")
    cases += [case for case in open_dataset(acdc, "acdc").cases if case.patient == "patient001"]
    assert len(cases) == 12 and cases[-1].label.name.endswith("_gt.NII.GZ")
    for case in (cases[0], cases[7], cases[-1]):
        assert read_image(case.image).array.std() > 0


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(acdc, tmp_path, encoding):
    (acdc / "patient002" / "Info.cfg").write_text("ED: 4\r\nES: 11\r\n", encoding=encoding)
    (acdc / "dataset.json").write_text('{"classes": ["background", "coração"]}', encoding=encoding)
    dataset = open_dataset(acdc, "acdc")
    assert len(dataset.cases) == 19 and dataset.class_names[1] == "coração"
    names = dataset.patients
    sets = {"train": names[:7], "validation": names[7:8], "test": names[8:]}
    (acdc / "split.json").write_text(json.dumps(sets), encoding=encoding)
    assert (acdc / "split.json").read_bytes()[:2] in (codecs.BOM_UTF8[:2], codecs.BOM_UTF16)
    split = make_split(dataset.cases, labeled=2, seed=0, file=dataset.split_file)
    assert split.test == tuple(names[8:])
    saved = {"labeled": names[:1], "unlabeled": names[1:7], "validation": names[7:8], "test": names[8:]}
    (tmp_path / "saved.json").write_text(json.dumps(saved), encoding=encoding)
    assert load_split(tmp_path / "saved.json").labeled == ("patient001",)


def test_linked_folders_are_entered_once(lits, acdc, tmp_path):
    store = shutil.move(lits / "batch2", tmp_path / "store")
    (lits / "Training Batch 2").symlink_to(store)
    (lits / "the same again").symlink_to(store)
    (store / "around").symlink_to(lits)
    (store / "in a circle").symlink_to(store)
    (lits / "everything").symlink_to(tmp_path)
    (lits / "volume-0.nii").rename(tmp_path / "scan.nii")
    (lits / "volume-0.nii").symlink_to(tmp_path / "scan.nii")
    cases = open_dataset(lits, "lits").cases
    assert [case.name for case in cases] == [f"volume-{n}" for n in range(10)]
    assert all(case.label is not None for case in cases)
    shutil.move(acdc / "patient004", tmp_path / "patient004")
    (acdc / "patient004").symlink_to(tmp_path / "patient004")
    assert len(open_dataset(acdc, "acdc").cases) == 19


@pytest.mark.parametrize(
    ("format", "path"),
    [
        ("lits", "segmentation-3.nii"),
        ("lits", "volume-3.nii"),
        ("lits", "batch2"),
        ("lits", "manifest.json"),
        ("acdc", "patient001/patient001_frame01_gt.nii.gz"),
        ("acdc", "patient001/patient001_frame01.nii.gz"),
        ("acdc", "patient001/Info.cfg"),
        ("acdc", "patient007"),
        ("acdc", "testing"),
        ("acdc", "dataset.json"),
        ("acdc", "split.json"),
        ("acdc", ""),
    ],
)
def test_a_dangling_link_is_named(lits, acdc, tmp_path, format, path):
    root = {"lits": lits, "acdc": acdc}[format]
    place = Path(root / path) if path else tmp_path / "link"
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to("/no/such/target")
    with pytest.raises(InputError) as error:
        assert open_dataset(root if path else place, format).split_file is None
    assert f"{place} is a link to /no/such/target, which does not exist" in str(error.value)


def test_acdc_two_files_of_one_frame(acdc):
    folder = acdc / "patient001"
    shutil.copy(folder / "patient001_frame01_gt.nii.gz", folder / "patient001_frame01_gt.nii")
    with pytest.raises(InputError, match=r"patient001_frame01_gt\.nii are both there"):
        open_dataset(acdc, "acdc")
    (folder / "patient001_frame01_gt.nii").unlink()
    (folder / "patient001_frame01_gt.nii").mkdir()
    with pytest.raises(InputError, match=r"patient001_frame01_gt\.nii is not a file"):
        open_dataset(acdc, "acdc")
