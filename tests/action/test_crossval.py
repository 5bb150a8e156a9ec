"""Cross-validation: who validates when, what is trained, gone on with and measured."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from action import crossval, predict
from action.data.cases import Case
from action.data.folds import make_folds
from action.errors import InputError
from action.run_folder import RunFolder

SHORT = ["--method=supervised", "--labeled=2", "--baseline.iterations=2", "--model.channels=[4,6,8]", "--device=cpu"]


def cases_of(patients, unlabeled=()):
    return [Case(p, p, Path(p), None if p in unlabeled else Path(p)) for p in patients]


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_every_patient_with_labels_validates_once(count):
    patients = [f"p{number}" for number in range(1, 13)]
    cases = cases_of(patients, unlabeled=["p4"])
    folds = make_folds(cases, count, order=patients, test=["p2", "p11"], always=["p7"], shuffle_seed=3)
    validated = [name for fold in folds for name in fold.validation]
    assert sorted(validated) == sorted({*patients} - {"p2", "p4", "p7", "p11"})
    sizes = [len(fold.validation) for fold in folds]
    assert max(sizes) - min(sizes) <= 1
    for fold in folds:
        assert fold.test == ("p2", "p11") and {"p4", "p7"} <= set(fold.train)
        assert sorted([*fold.train, *fold.validation, *fold.test]) == sorted(patients)
        assert list(fold.train) == [name for name in patients if name in fold.train]  # in the order that was given
    again = make_folds(cases, count, order=patients, test=["p2", "p11"], always=["p7"], shuffle_seed=3)
    other = make_folds(cases, count, order=patients, test=["p2", "p11"], always=["p7"], shuffle_seed=4)
    assert again == folds != other


@pytest.mark.parametrize(("count", "words"), [(1, "at least 2"), (0, "at least 2"), (5, "4 patients have labels")])
def test_numbers_of_folds_that_cannot_be(count, words):
    patients = [f"p{number}" for number in range(6)]
    with pytest.raises(InputError, match=words):
        make_folds(cases_of(patients, ["p0"]), count, order=patients, test=["p1"])


def test_a_list_of_labelled_patients_is_that_of_who_trains():
    patients = ["a", "b", "c", "d"]
    folds = make_folds(cases_of(patients), 2, order=patients, test=[], labeled=["c", "a", "b"])
    for fold in folds:
        assert fold.labeled == tuple(name for name in ("c", "a", "b") if name in fold.train)
        assert fold.lists["labeled"] == fold.labeled


@pytest.fixture(scope="module")
def finished(acdc_root, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "folds"
    crossval.main(["--folds=3", "--data", str(acdc_root), *SHORT, "--output", str(output)])
    return output


def read(path):
    return json.loads(path.read_text())


def splits(output, count):
    return [read(output / f"fold{index}" / "split.json") for index in range(count)]


def test_the_folds_are_runs_and_their_measures_are_gathered(finished, acdc_root):
    found = splits(finished, 3)
    assert len({tuple(split["test"]) for split in found}) == 1 and len(found[0]["test"]) == 2
    validated = [name for split in found for name in split["validation"]]
    assert sorted([*validated, *found[0]["test"]]) == sorted(path.name for path in acdc_root.iterdir())
    summary = read(finished / "crossval.json")
    for fold, split in zip(summary["folds"], found, strict=True):
        assert {case.partition("_")[0] for case in fold["validation"]["cases"]} == set(split["validation"])
        assert fold["test"] == read(Path(fold["run"]) / "summary.json")
    names = list(summary["folds"][0]["validation"]["classes"])
    by_case = [case for fold in summary["folds"] for case in fold["validation"]["cases"].values()]
    pooled = summary["validation"]["over_cases"]
    assert len(pooled["cases"]) == len(by_case)
    for name in names:
        for part in ("validation", "test"):
            means = [fold[part]["classes"][name]["dice"] for fold in summary["folds"]]
            row = summary[part]["over_folds"]["classes"][name]
            assert np.isclose(row["dice"], np.mean(means)) and np.isclose(row["dice_std"], np.std(means))
        assert np.isclose(pooled["classes"][name]["dice"], np.mean([case[name]["dice"] for case in by_case]))


def test_going_on_measures_again_and_trains_what_is_missing(finished, acdc_root, tmp_path, capsys, monkeypatch):
    output = Path(shutil.copytree(finished, tmp_path / "folds"))
    shutil.rmtree(output / "fold2")
    (output / "crossval.json").unlink()
    arguments = ["--folds=3", "--data", str(acdc_root), *SHORT, "--output", str(output)]
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="fold0 exists: continue it with --resume"):
        crossval.main(arguments)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    monkeypatch.chdir(tmp_path)
    crossval.main([*arguments, "--resume"])
    ours, theirs = read(output / "crossval.json"), read(finished / "crossval.json")
    assert ours["validation"] == theirs["validation"] and ours["test"] == theirs["test"]
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("validation: mean over 3 folds") for line in printed)
    *_, command = printed
    assert command == "  python -m action.predict folds/fold0 IMAGES -o DIR --ensemble folds/fold1 folds/fold2"
    image = next(acdc_root.glob("*/*_frame01.nii.gz"))
    words = [{"IMAGES": str(image), "DIR": "out"}.get(word, word) for word in shlex.split(command)[3:]]
    predict.main([*words, "--device=cpu"])
    assert (tmp_path / "out" / image.name).is_file()


def test_other_folds_are_no_continuation(finished, acdc_root, tmp_path):
    output = Path(shutil.copytree(finished, tmp_path / "folds"))
    before = (output / "fold0" / "split.json").read_bytes()
    with pytest.raises(InputError, match="differs from the split"):
        crossval.main(["--folds=4", "--data", str(acdc_root), *SHORT, "--output", str(output), "--resume"])
    assert (output / "fold0" / "split.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--folds=1"], "folds is 1"),
        (["--folds=9"], "folds is 9, but 8 patients"),
        (["--folds=2", "--labeled=5"], "5 labelled patients asked for, but 4 of the 4"),
        (["--folds=2", "--labeled=4", "--method=mean-teacher"], "every training patient is labelled"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_written(flags, words, acdc_root, tmp_path):
    output = tmp_path / "folds"
    with pytest.raises(InputError, match=words):
        crossval.main(["--data", str(acdc_root), *SHORT, *flags, "--output", str(output)])
    assert not output.exists()


def test_a_run_s_folder_holds_no_folds(finished, acdc_root):
    before = sorted(finished.rglob("*"))
    with pytest.raises(InputError, match="is the folder of a run"):
        crossval.main(["--data", str(acdc_root), *SHORT, "--output", str(finished / "fold0")])
    assert sorted(finished.rglob("*")) == before


def test_it_runs_in_one_process(acdc_root, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process"):
        crossval.main(["--data", str(acdc_root), *SHORT, "--output", str(tmp_path / "folds")])


def test_named_patients_teach_every_fold_and_a_file_s_test_patients_test(acdc_root, tmp_path):
    patients = sorted(path.name for path in acdc_root.iterdir())
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": patients[3:], "validation": patients[1:3], "test": patients[:1]}))
    settings = [*SHORT, f"--split.file={file}", f"--labeled_patients=[{patients[4]},{patients[9]}]"]
    output = tmp_path / "folds"
    crossval.main(["--folds=2", "--data", str(acdc_root), *settings, "--output", str(output)])
    for split in splits(output, 2):
        assert split["labeled"] == [patients[4], patients[9]] and split["test"] == patients[:1]
        assert not {patients[4], patients[9]} & set(split["validation"])


@pytest.fixture
def nnunet(acdc_root, tmp_path):
    """The first six patients in nnU-Net's layout, with three folds of its own."""
    root = tmp_path / "Dataset001_Heart"
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    cases = []
    for path in sorted(acdc_root.glob("*/*_frame01_gt.nii.gz")):
        name = path.name.removesuffix("_frame01_gt.nii.gz")
        shutil.copy(path, root / "labelsTr" / f"{name}.nii.gz")
        image = path.with_name(path.name.replace("_gt", ""))
        shutil.copy(image, root / "imagesTr" / f"{name}_0000.nii.gz")
        cases.append(name)
    labels = {"background": 0, "right": 1, "wall": 2, "left": 3}
    content = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": len(cases), "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content))
    folds = [{"train": [c for c in cases if c not in cases[i::3]], "val": cases[i::3]} for i in range(3)]
    (root / "splits_final.json").write_text(json.dumps(folds))
    return root


def test_folds_that_the_data_set_prescribes_are_taken(nnunet, tmp_path):
    output = tmp_path / "folds"
    with pytest.raises(InputError, match="folds is 2, but .* prescribes 3"):
        crossval.main(["--folds=2", "--data", str(nnunet), *SHORT, "--output", str(output)])
    crossval.main(["--data", str(nnunet), *SHORT, "--output", str(output)])
    wanted = [set(fold["val"]) for fold in read(nnunet / "splits_final.json")]
    assert [set(split["validation"]) for split in splits(output, 3)] == wanted
    assert not RunFolder(output / "fold3").root.exists() and not (output / "fold0.json").exists()
    assert read(output / "crossval.json")["test"] is None
