"""What is decided from the training volumes, and how a volume unlike them is named."""

import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
from conftest import save_nifti

from action import evaluate, predict, prepare, train
from action.config import InputConfig, TrainConfig
from action.data import Case, open_dataset
from action.data.fingerprint import fingerprint_of, load_fingerprint, measure, save_fingerprint, unlike
from action.data.nifti import read_image
from action.data.volumes import load_cases
from action.errors import InputError
from action.experiment import load_data

CT_AFFINE = np.diag([3.0, 3.0, 5.0, 1.0])


def ct(seed: int, size: int = 48) -> np.ndarray:
    """A body of 40 HU with an organ of 110 in air, [Z, Y, X]."""
    _, y, x = np.indices((8, size, size))
    body, organ = np.hypot(x - 24, y - 24) < 19, np.hypot(x - 18 - seed % 3, y - 22) < 7
    return np.select([organ, body], [110, 40], -1000) + np.random.default_rng(seed).normal(0, 12, x.shape).round()


def mri(seed: int) -> np.ndarray:
    """Rings of three tissues, in a unit of its own."""
    _, y, x = np.indices((4, 48, 48))
    r = np.hypot(x - 24 - seed % 3, y - 24)
    picture = np.select([r < 6, r < 11, r < 17], [190, 90, 140], 40) + np.random.default_rng(seed).normal(0, 8, x.shape)
    return (picture * (8 + seed)).clip(0).round()


def cases(folder, volumes, affine=CT_AFFINE):
    return [
        Case(str(i), str(i), save_nifti(folder / f"{i}.nii.gz", volume.astype(np.float32), affine), None)
        for i, volume in enumerate(volumes)
    ]


def said(folder, volume, fingerprint, affine=CT_AFFINE):
    path = save_nifti(folder / "new.nii.gz", volume.astype(np.float32), affine)
    notes = unlike([measure(read_image(path))], fingerprint)
    assert all(note.startswith(f"{path}: ") for note in notes)
    return " | ".join(note.removeprefix(f"{path}: ") for note in notes)


@pytest.fixture(scope="module")
def of_ct(tmp_path_factory):
    return fingerprint_of(cases(tmp_path_factory.mktemp("ct"), [ct(seed) for seed in range(5)]), "auto")


@pytest.fixture(scope="module")
def of_mri(tmp_path_factory):
    return fingerprint_of(cases(tmp_path_factory.mktemp("mri"), [mri(seed) for seed in range(5)]), "auto")


def one(volume, value):
    volume = volume.copy()
    volume[1, 2, 3] = value
    return volume


@pytest.mark.parametrize(
    ("volumes", "intensity"),
    [
        ([ct(0), ct(1), ct(2)], "hu"),
        ([ct(0), ct(1), ct(2) + 1024, ct(3)[:, 18:30, 18:30]], "hu"),  # half of them
        ([one(mri(seed), -501) for seed in range(3)], "minmax"),
        ([mri(0), mri(1), one(mri(2), -3000)], "minmax"),
        ([ct(0), mri(1), mri(2)], "minmax"),
    ],
)
def test_the_scaling_is_decided_once_for_all_volumes(tmp_path, volumes, intensity):
    assert fingerprint_of(cases(tmp_path, volumes), "auto").intensity == intensity
    for asked in ("minmax", "hu"):
        assert fingerprint_of(cases(tmp_path, volumes), asked).intensity == asked


def test_how_far_it_has_come_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("action.progress.EVERY", 0.0)
    monkeypatch.setattr("sys.stderr", log := io.StringIO())
    fingerprint_of(cases(tmp_path, [ct(0), ct(1)]), "auto")
    assert log.getvalue() == ""
    fingerprint_of(cases(tmp_path, [ct(0), ct(1)]), "auto", progress=True)
    assert "measuring: 2 of 2" in log.getvalue()


def test_volumes_without_air_are_scaled_as_the_others(tmp_path):
    volumes = [ct(0), ct(1), ct(2)[:, 12:36, 12:36].clip(-499)]
    with pytest.warns(UserWarning, match=r"2\.nii\.gz: has no air"):
        loaded = load_cases(cases(tmp_path, volumes), 2, InputConfig((1.5, 1.5)))
    organ = [case.image.astype(float).max() for case in loaded]
    assert np.ptp(organ) < 0.1  # by itself the last would reach 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a, ""),
        (lambda a: (a + 1024).clip(0), "1024 added"),
        (lambda a: (a + 1024)[:, 12:36, 12:36], "1024 added"),
        (lambda a: a + 1024, "1024 added"),
        (lambda a: a[:, 12:36, 12:36].clip(-499), "no air"),
        (lambda a: one(a[:, 12:36, 12:36].clip(-499), -501), "no air"),
        (lambda a: (a + 1000) / 2000, "no air"),
        (lambda a: np.where(np.arange(48) < 3, -3024, a), "padding"),
        (lambda a: one(a, 30000), "single values from"),
        (lambda a: mri(0), "if it is CT"),
    ],
    ids=["plain", "plus", "plus-crop", "plus-negative", "crop", "crop-one", "unit", "padding", "metal", "mri"],
)
def test_ct_unlike_the_training_volumes_is_named(tmp_path, of_ct, change, words):
    notes = said(tmp_path, change(ct(7)), of_ct)
    assert words in notes and bool(notes) == bool(words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a, ""),
        (lambda a: 3 * a, ""),
        (lambda a: a / 1000, "another unit?"),
        (lambda a: one(a, -20000), "single values"),
        (lambda a: one(a, 32767), "single values"),
        (lambda a: one(a, 3.4028235e38), "single values"),
        (lambda a: a.max() - a, "distributed unlike"),
        (lambda a: ct(0)[:4], "as air has in CT"),
    ],
    ids=["plain", "brighter", "unit", "ringing", "spike", "float-max", "inverted", "ct"],
)
def test_mri_unlike_the_training_volumes_is_named(tmp_path, of_mri, change, words):
    notes = said(tmp_path, change(mri(7)), of_mri)
    assert words in notes and bool(notes) == bool(words)


@pytest.mark.parametrize(
    ("spacing", "shape", "words"),
    [
        ((4, 3, 3), (8, 48, 48), ""),
        ((5, 1, 1), (8, 48, 48), "voxels of 1 x 1 x 5 mm"),
        ((12, 3, 3), (8, 48, 48), "voxels of 3 x 3 x 12 mm"),
        ((5, 3, 3), (1, 48, 48), "48 x 48 x 1 voxels, the training volumes have 48 x 48 x 8 to 48 x 48 x 8"),
    ],
)
def test_another_geometry_is_named(tmp_path, of_ct, spacing, shape, words):
    notes = said(tmp_path, ct(7)[: shape[0]], of_ct, np.diag([*spacing[::-1], 1.0]))
    assert words in notes and bool(notes) == bool(words)


def test_a_fingerprint_survives_the_file(tmp_path, of_ct):
    save_fingerprint(of_ct, tmp_path / "fingerprint.json")
    assert load_fingerprint(tmp_path / "fingerprint.json") == of_ct


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: {},
        lambda content: [],
        lambda content: {**content, "intensity": "auto"},
        lambda content: {**content, "quantiles": content["quantiles"][1:]},
        lambda content: {**content, "spacing": ["a", 1, 1]},
        lambda content: {**content, "directions": [[1, 0], [0, 1]]},
        lambda content: {**content, "ranges": [0, float("nan")]},
    ],
)
def test_a_damaged_fingerprint_is_refused(tmp_path, of_ct, damage):
    path = tmp_path / "fingerprint.json"
    path.write_text(json.dumps(damage(json.loads(json.dumps(dataclasses.asdict(of_ct))))))
    with pytest.raises(InputError, match=r"fingerprint\.json is not a readable fingerprint"):
        load_fingerprint(path)


def test_a_run_keeps_what_it_was_trained_with(lits_root, tmp_path, monkeypatch, capsys):
    root, run = shutil.copytree(lits_root, tmp_path / "data"), tmp_path / "run"
    flags = ["--method=supervised", "--labeled=2", "--baseline.iterations=1", "--model.channels=[4,6,8]"]
    train.main(["--data", str(root), "--format=lits", *flags, "--device=cpu", "--output", str(run)])
    kept = load_fingerprint(run / "fingerprint.json")
    assert kept.intensity == "hu" and kept.volumes == 2 and kept.axis_codes == "LPS"

    image = read_image(root / "volume-0.nii")
    new = save_nifti(tmp_path / "new.nii.gz", image.array[:, 4:] + 1024, image.affine)
    capsys.readouterr()
    predict.main([str(run), str(new), "-o", str(tmp_path / "out"), "--device=cpu"])
    assert "1024 added" in capsys.readouterr().out
    used = []
    monkeypatch.setattr("action.evaluate.load_cases", lambda *a, **k: used.append(a[3]) or load_cases(*a, **k))
    evaluate.main([str(run), "--device=cpu", "--overwrite"])
    assert used == [kept]

    (run / "fingerprint.json").unlink()
    for main, arguments in ((predict.main, [str(new), "-o", str(tmp_path / "b")]), (evaluate.main, ["--overwrite"])):
        with pytest.raises(InputError, match="older version, which scaled every volume by itself"):
            main([str(run), *arguments, "--device=cpu"])
    with pytest.raises(InputError, match="older version"):
        train.main(["--output", str(run), "--resume"])


def test_training_volumes_alone_decide(lits_root, tmp_path, capsys):
    root = shutil.copytree(lits_root, tmp_path / "data")
    split = {"train": ["0", "1", "2", "3", "4"], "validation": ["5"], "test": ["6", "7", "8", "9"]}
    patients = open_dataset(root, "lits").patients
    split = {key: [patients[int(i)] for i in members] for key, members in split.items()}
    (root / "split.json").write_text(json.dumps(split))
    for number in range(6, 10):
        path = root / "batch2" / f"volume-{number}.nii.gz"
        image = read_image(path)
        save_nifti(path, (image.array + 1024).astype(np.float32), image.affine)
    config = TrainConfig(str(root), format="lits", labeled=2, input=InputConfig((0.75, 0.75)))
    data = load_data(config)
    assert data.fingerprint.intensity == "hu" and data.fingerprint.volumes == data.fingerprint.volumes_with_air == 5
    named = [line for line in capsys.readouterr().out.splitlines() if "unlike" in line or "1024" in line]
    assert len(named) == 1 and named[0].startswith("note: each of 4 files (")
    assert load_data(config, dataclasses.replace(data.fingerprint, intensity="minmax")).test[0].image.min() == 0


def test_the_check_names_a_volume_unlike_the_others(acdc_root, tmp_path, capsys):
    root = shutil.copytree(acdc_root, tmp_path / "data")
    path = root / "patient004" / "patient004_frame09.nii.gz"
    save_nifti(path, read_image(path).array.astype(np.int16), np.diag([15.0, 15.0, 8.0, 1.0]))
    prepare.main(["check", str(root)])
    assert f"note: {path}: voxels of 15 x 15 x 8 mm" in capsys.readouterr().out
