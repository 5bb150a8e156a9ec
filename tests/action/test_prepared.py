"""Prepared cases on disk: the same as from memory, made anew when anything changes, whatever happens meanwhile."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import save_nifti
from layouts import case_images
from test_kills import SHORT, assert_same_run, processes, start  # noqa: F401  a fixture
from test_torchrun import torchrun

from action import evaluate, train
from action.config import InputConfig, TrainConfig
from action.data import findings, fingerprint, in_memory, prepared, volumes
from action.data.fingerprint import fingerprint_of
from action.data.identity import describe
from action.data.prepared import PreparedCases
from action.data.volumes import load_case
from action.errors import InputError
from action.experiment import load_data, open_split
from action.files import ABANDONED
from action.run_folder import RunFolder
from action.trainer import Trainer

SCALE = InputConfig((1.5, 1.2))
ARRAYS = ("image", "label", "truth")


def settings(root, cache=None, **changes):
    return TrainConfig(str(root), labeled=2, cache=None if cache is None else str(cache), input=SCALE, **changes)


def sets(data):
    return [*data.labeled, *data.unlabeled, *data.validation, *data.test]


def assert_same_case(one, other, classes=4):
    for name in ARRAYS:
        ours, theirs = getattr(one, name), getattr(other, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == theirs.dtype and np.array_equal(np.asarray(ours), np.asarray(theirs))
    plain = ("name", "patient", "spacing", "shape", "box")
    assert [getattr(one, name) for name in plain] == [getattr(other, name) for name in plain]
    ours, theirs = one.volume, other.volume
    assert type(ours.header) is type(theirs.header)
    fields = {key: (ours.header[key].tolist(), theirs.header[key].tolist()) for key in ours.header}
    assert {key: pair for key, pair in fields.items() if repr(pair[0]) != repr(pair[1])} == {}
    assert [e.get_content() for e in ours.header.extensions] == [e.get_content() for e in theirs.header.extensions]
    assert np.array_equal(ours.affine, theirs.affine) and ours.affine.dtype == theirs.affine.dtype
    assert (ours.spacing, ours.path, ours.turn, ours.sized) == (theirs.spacing, theirs.path, theirs.turn, theirs.sized)
    assert describe([one]) == describe([other])
    facts = [dataclasses.asdict(findings.of_case(case, classes)) for case in (one, other)]
    voxels = [f.pop("voxels") for f in facts]
    assert facts[0] == facts[1] and np.array_equal(*voxels)


@pytest.fixture
def reads(monkeypatch):
    """Names of the cases that are prepared, from memory and on disk, and of those that are measured alone."""
    names = {"prepared": [], "measured": []}
    places = [(in_memory, "read_case"), (volumes, "read_case"), (prepared, "read_case"), (fingerprint, "measures_of")]
    for module, name in places:
        original = getattr(module, name)
        key = "prepared" if name == "read_case" else "measured"

        def counted(case, *args, key=key, original=original, **kwargs):
            names[key].append(case.name)
            return original(case, *args, **kwargs)

        monkeypatch.setattr(module, name, counted)
    return names


def odd(root):
    """A data set with what is worth a note, and headers of every kind."""
    image = nib.load(root / "patient004" / "patient004_frame01.nii.gz")
    pixels = np.asarray(image.dataobj)
    header = nib.Nifti2Header()
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"scanned on a Monday"))
    turned = np.diag([-1.5, 1.5, 8.0, 1.0])
    for patient in ("patient004", "patient005", "patient006", "patient007", "patient008"):
        for path in (root / patient).glob("*_frame0?.nii.gz"):
            nib.save(nib.Nifti2Image(pixels + int(patient[-1]), turned, header), path)  # its label lies elsewhere
    return root


@pytest.mark.parametrize("kind", ["acdc", "odd", "lits"])
def test_the_same_as_from_memory(acdc_root, lits_root, tmp_path, capsys, reads, kind):
    root = lits_root if kind == "lits" else acdc_root
    if kind == "odd":
        root = odd(shutil.copytree(acdc_root, tmp_path / "data"))
    cache = tmp_path / "cache"
    seen = []
    for where in (None, cache, cache):
        data = load_data(settings(root, where))
        seen.append((data, capsys.readouterr().out))
        read = sorted(reads["prepared"])
        assert read == (sorted(case.name for case in sets(data)) if len(seen) < 3 else [])
        reads["prepared"].clear()
    (memory, said), *others = seen
    assert ("note: " in said) == (kind == "odd")
    for data, said_then in others:
        assert said_then == said
        assert (data.fingerprint, data.split) == (memory.fingerprint, memory.split)
        for one, other in zip(sets(memory), sets(data), strict=True):
            assert_same_case(one, other, classes=3 if kind == "lits" else 4)
    assert reads["measured"] == []  # a volume is measured while it is in memory to be prepared


def test_nothing_is_read_a_second_time(acdc_root, tmp_path, monkeypatch):
    load_data(settings(acdc_root, tmp_path / "cache"))
    monkeypatch.setattr("action.data.slice_file.SliceFile.read", None)  # no voxel, nor any scan
    monkeypatch.setattr(prepared, "read_case", None)
    monkeypatch.setattr(fingerprint, "measures_of", None)
    load_data(settings(acdc_root, tmp_path / "cache"))


def test_a_wrong_guess_is_made_good_and_leaves_nothing(acdc_root, tmp_path, reads):
    """A tenth of one volume is air, as in CT, so that alone it would be scaled as CT."""
    root = shutil.copytree(acdc_root, tmp_path / "data")
    path = root / "patient004" / "patient004_frame01.nii.gz"
    voxels = np.asarray(nib.load(path).dataobj).T.copy()
    voxels[:, :4] = -1000
    save_nifti(path, voxels)
    os.utime(path, ns=(1, 1))
    config = settings(root)
    dataset, split = open_split(config)
    training = [case for case in dataset.cases if case.patient in {*split.labeled, *split.unlabeled}]
    assert path in [case.image for case in training]
    expected = fingerprint_of(training, "auto")
    (odd_one,) = (case for case in dataset.cases if case.image == path)
    alone = load_case(odd_one, 4, SCALE, expected, keep_truth=False)
    reads["prepared"].clear()
    for cache in (None, tmp_path / "cache"):
        data = load_data(settings(root, cache))
        assert data.fingerprint == expected and expected.intensity == "minmax"
        (loaded,) = (case for case in sets(data) if case.name == odd_one.name)
        assert np.array_equal(np.asarray(loaded.image), alone.image)
        assert sorted(reads["prepared"]) == sorted([*(case.name for case in sets(data)), odd_one.name])
        reads["prepared"].clear()
    assert len(list((tmp_path / "cache").glob(f"*{prepared.END}"))) == len(sets(data))


def test_a_volume_that_cannot_be_prepared_is_measured_still(acdc_root, tmp_path, reads):
    """So that the others are not prepared anew when its label has been mended."""
    root = shutil.copytree(acdc_root, tmp_path / "data")
    config = dataclasses.replace(settings(root, tmp_path / "cache"), method="supervised", labeled=7)
    _, split = open_split(config)
    (label, *_) = (root / split.labeled[0]).glob("*_gt.nii.gz")
    whole = label.read_bytes()
    save_nifti(label, np.full((4, 32, 32), 9, np.uint8))
    with pytest.raises(InputError, match="has unknown values 9"):
        load_data(config)
    broken = label.name.replace("_gt.nii.gz", "")
    assert reads["measured"] == [broken]
    label.write_bytes(whole)
    reads["prepared"].clear()
    load_data(config)
    assert reads["prepared"] == [broken]


def test_a_run_is_that_from_memory_bit_for_bit_also_resumed(acdc_root, tmp_path, monkeypatch):
    runs = {name: RunFolder(tmp_path / name) for name in ("memory", "cache", "again")}
    cache = ["--cache", str(tmp_path / "prepared")]
    command = ["--data", str(acdc_root), *SHORT]
    train.main([*command, f"--output={runs['memory'].root}"])
    train.main([*command, *cache, f"--output={runs['cache'].root}"])
    step = Trainer.train_step

    def interrupted(self, stage, number):
        if self.step >= 4:
            raise KeyboardInterrupt
        return step(self, stage, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_step", interrupted)
        train.main([*command, f"--output={runs['again'].root}"])
    train.main(["--resume", *cache, f"--output={runs['again'].root}"])  # begun in memory
    summary = runs["cache"].summary.read_bytes()
    evaluate.main([str(runs["cache"].root), "--overwrite"])
    assert runs["cache"].summary.read_bytes() == summary
    for name in ("cache", "again"):
        assert_same_run(runs["memory"], runs[name])
        for path in runs["memory"].predictions.iterdir():
            one, other = nib.load(path), nib.load(runs[name].predictions / path.name)
            assert one.header == other.header and np.array_equal(one.dataobj, other.dataobj)


CHANGES = {
    "image": lambda root: save_nifti(scan(root), np.asarray(nib.load(scan(root)).dataobj).T + 1),
    "time": lambda root: os.utime(scan(root), ns=(1, 1)),
    "label": lambda root: os.utime(next(scan(root).parent.glob("*_gt.nii.gz")), ns=(1, 1)),
}


def scan(root):
    return next(path for path in sorted((root / "patient001").glob("*.nii.gz")) if "_frame" in path.name)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_prepared_anew_and_no_other(acdc_root, tmp_path, reads, change):
    root = shutil.copytree(acdc_root, tmp_path / "data")
    config = dataclasses.replace(settings(root, tmp_path / "cache"), method="supervised", labeled=7)
    load_data(config)
    reads["prepared"].clear()
    CHANGES[change](root)
    data = load_data(config)
    assert len(reads["prepared"]) == 1 and reads["prepared"][0].startswith("patient001")
    for one, other in zip(sets(data), sets(load_data(dataclasses.replace(config, cache=None))), strict=True):
        assert_same_case(one, other)


@pytest.mark.parametrize(
    "changed", [{"spacing": (1.5, 1.3)}, {"crop": "body"}, {"intensity": "hu"}, {"intensity": "minmax"}]
)
def test_another_setting_is_another_preparation(lits_root, tmp_path, reads, changed):
    config = dataclasses.replace(settings(lits_root, tmp_path / "cache"), input=InputConfig((1.5, 1.2)))
    load_data(config)
    reads["prepared"].clear()
    config = dataclasses.replace(config, input=dataclasses.replace(config.input, **changed))
    data = load_data(config)
    same = changed == {"intensity": data.fingerprint.intensity if changed.get("intensity") == "hu" else None}
    assert len(reads["prepared"]) == (0 if same else len(sets(data)))  # "auto" had chosen "hu"
    for one, other in zip(sets(data), sets(load_data(dataclasses.replace(config, cache=None))), strict=True):
        assert_same_case(one, other, classes=3)


def test_what_else_a_preparation_follows_from(acdc_root, tmp_path, reads, monkeypatch):
    config = settings(acdc_root, tmp_path / "cache")
    data = load_data(config)
    turned = dataclasses.replace(data.fingerprint, directions=((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))
    for change in ("turn", "version"):
        reads["prepared"].clear()
        with monkeypatch.context() as patch:
            if change == "version":
                patch.setattr(prepared, "VERSION", prepared.VERSION + 1)
            load_data(config, turned if change == "turn" else None)
        assert len(reads["prepared"]) == len(sets(data)), change
    reads["prepared"].clear()
    load_data(config)
    assert reads["prepared"] == []  # the first ones are still there


def damaged(path, how):
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "of another":
        path.write_bytes(
            next(other for other in sorted(path.parent.glob("*" + path.suffix)) if other != path).read_bytes()
        )
    else:
        path.write_bytes({"empty": b"", "cut": content[:-30], "zeros": bytes(len(content))}[how])


@pytest.mark.parametrize("how", ["gone", "of another", "empty", "cut", "zeros"])
def test_damage_is_made_good(acdc_root, tmp_path, how):
    cache = tmp_path / "cache"
    memory = load_data(settings(acdc_root))
    before = load_data(settings(acdc_root, cache))
    whole = {path: path.read_bytes() for path in cache.iterdir()}
    for end in (prepared.END, prepared.END_OF_MEASURES):
        damaged(sorted(cache.glob("*" + end))[0], how)
    after = load_data(settings(acdc_root, cache))
    assert {path: path.read_bytes() for path in cache.iterdir()} == whole
    for path in cache.iterdir():
        damaged(path, "cut" if how == "of another" else how)  # under the hands of both
    for data in (before, after):
        for one, other in zip(sets(memory), sets(data), strict=True):
            assert_same_case(one, other)


def test_a_scan_that_changes_under_a_run_is_not_taken_for_the_old_one(acdc_root, tmp_path):
    root = shutil.copytree(acdc_root, tmp_path / "data")
    data = load_data(settings(root, tmp_path / "cache"))
    case = data.labeled[0]
    os.utime(case.volume.path, ns=(1, 1))
    assert np.asarray(case.image).shape == case.image.shape  # what was prepared is still there
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    with pytest.raises(InputError, match=f"{case.volume.path.name} or its label was changed while it was in use"):
        case.image[0]


def test_only_what_was_left_half_written_is_removed(acdc_root, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    old, new = cache / ".partial-1-a.slices", cache / ".partial-2-b.measures.json"
    others = [cache / "notes.txt", cache / ".partial-1-x.txt", cache / "a.slices", new]
    for path in (old, *others):
        path.write_text("x")
    for path in (old, *others[:-1]):
        os.utime(path, (time.time() - 2 * ABANDONED,) * 2)
    load_data(settings(acdc_root, cache))
    assert not old.exists() and all(path.read_text() == "x" for path in others)


def test_a_folder_that_cannot_be_made(acdc_root, tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cache .* cannot be made"):
            PreparedCases(place)


def test_problems_of_files_are_those_without_a_cache(acdc_root, tmp_path):
    root = shutil.copytree(acdc_root, tmp_path / "data")
    for patient in ("patient002", "patient005"):
        next((root / patient).glob("*_frame??.nii.gz")).write_bytes(b"broken")
    words = []
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        with pytest.raises(InputError, match="2 problems") as raised:
            load_data(settings(root, cache))
        words.append(str(raised.value))
    assert len(set(words)) == 1


def started(processes, root, cache, output, dies_at=0):  # noqa: F811
    """A training in a process that dies at an operation on the cache."""
    cache.mkdir(exist_ok=True)
    return start(processes, ["--data", root, *SHORT, f"--cache={cache}", f"--output={output}"], cache, dies_at)


@pytest.mark.parametrize("dies_at", [1, 9, 30])
def test_killed_while_preparing(processes, acdc_root, tmp_path, dies_at):  # noqa: F811
    cache = tmp_path / "cache"
    process, _ = started(processes, acdc_root, cache, tmp_path / "run", dies_at)
    process.join(120)
    assert process.exitcode == -9
    assert all(path.name.startswith(".partial-") or path.stat().st_size for path in cache.iterdir())
    for one, other in zip(
        sets(load_data(settings(acdc_root, cache))), sets(load_data(settings(acdc_root))), strict=True
    ):
        assert_same_case(one, other)


def test_two_runs_that_prepare_the_same_at_once(processes, acdc_root, tmp_path):  # noqa: F811
    both = [started(processes, acdc_root, tmp_path / "cache", tmp_path / name) for name in ("one", "other")]
    for process, log in both:
        process.join(120)
        assert process.exitcode == 0, log.read_text()
    assert_same_run(RunFolder(tmp_path / "one"), RunFolder(tmp_path / "other"))
    assert not list((tmp_path / "cache").glob(".*"))


def test_several_processes_share_a_cache(acdc_root, tmp_path):
    run = RunFolder(tmp_path / "run")
    process = torchrun(run, acdc_root, 2, f"--cache={tmp_path / 'cache'}")
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    assert run.summary.is_file()
    names = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "cache").glob("*.slices")}
    assert len(names) == len(list((tmp_path / "cache").glob("*.slices"))) > 10  # each case once


BOUNDED = """
import re, sys
from action.config import TrainConfig, InputConfig
from action.data.batches import SlicePool
from action.experiment import load_data

def peak():  # of this program; getrusage gives its parent's, where that is larger
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

def run(root, cache):
    data = load_data(TrainConfig(root, labeled=1, cache=cache, input=InputConfig((1.0, 1.0))))
    pool = SlicePool(data.unlabeled, labels=False, seed=0)
    for start in range(0, len(pool), 8):
        pool.batch(start, 8)
    return len(pool)

few, many, cache = sys.argv[1:]
run(few, cache or None)
before = peak()
run(many, cache or None)
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_data_set(tmp_path):
    """MiB by which the peak grows from 12 to 60 volumes, whose images and labels in memory would be 99 more."""
    rng = np.random.default_rng(0)
    for count in (12, 60):
        for number in range(count):
            voxels = rng.integers(-200, 1000, size=(12, 256, 256), dtype=np.int16)
            folder = tmp_path / f"data-{count}"
            save_nifti(folder / f"volume-{number}.nii", voxels, np.diag([1.0, 1.0, 5.0, 1.0]))
            save_nifti(folder / f"segmentation-{number}.nii", (voxels > 900).astype(np.uint8), np.diag([1, 1, 5, 1.0]))
    places = [str(tmp_path / name) for name in ("data-12", "data-60", "cache")]
    command = [sys.executable, "-c", BOUNDED, *places]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 45  # it depends on how many volumes are read at the same moment


def test_measures_are_kept_apart_from_settings(acdc_root, tmp_path, reads):
    cache = tmp_path / "cache"
    load_data(settings(acdc_root, cache))
    reads["prepared"].clear()
    data = load_data(dataclasses.replace(settings(acdc_root, cache), input=InputConfig((1.1, 1.1), intensity="hu")))
    assert sorted(reads["prepared"]) == sorted(case.name for case in sets(data)) and reads["measured"] == []
    assert all(json.loads(path.read_text())["key"] for path in Path(cache).glob("*.measures.json"))


def test_channels(tmp_path):
    root = tmp_path / "data"
    for number in range(6):
        channels, label = case_images(number, 2)
        for index, channel in enumerate(channels):
            save_nifti(root / "imagesTr" / f"case_{number}_{index:04d}.nii.gz", channel)
        save_nifti(root / "labelsTr" / f"case_{number}.nii.gz", label)
    names = {"background": 0, "one": 1, "two": 2}
    channels = {"0": "T1", "1": "T2"}
    described = {"labels": names, "channel_names": channels, "numTraining": 6, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(described))
    memory, *others = (load_data(settings(root, cache)) for cache in (None, tmp_path / "cache", tmp_path / "cache"))
    for data in others:
        assert data.fingerprint == memory.fingerprint
        for one, other in zip(sets(memory), sets(data), strict=True):
            assert other.image.shape[1] == 2
            assert_same_case(one, other, classes=3)
