"""The command line from data to summary: runs on miniature data, interruption, and bad input."""

import csv
import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from action import figures, predict, train
from action.choices import METHODS
from action.cli import parse_config
from action.errors import InputError
from action.run_folder import load_checkpoint, save_checkpoint
from action.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
PUBLISHED = {"acdc": (1, 3, 7), "lits": (5, 10)}  # numbers of labelled patients
SHORT = [
    "--model.channels=[4,6,8]",
    "--model.embedding=8",
    "--model.window=16",
    "--model.stride=8",
    "--model.pooled=4",
    "--global_distillation.iterations=2",
    "--local_distillation.iterations=3",
    "--anatomical_contrast.iterations=4",
    "--anatomical_contrast.queries=8",
    "--anatomical_contrast.keys=8",
    "--anatomical_contrast.negatives_per_query=8",
    "--evaluation.every=2",
    "--evaluation.checkpoint_every=2",
    "--device=cpu",
]


def run(arguments):
    train.main([str(argument) for argument in arguments])


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def finished(acdc_root, tmp_path_factory):
    """An uninterrupted ACTION run, which draws its figures."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("action.trainer.plot_progress", figures.plot_progress)
        patch.setattr("action.evaluate.plot_overlays", figures.plot_overlays)
        run(["--data", acdc_root, "--labeled=2", f"--output={output}", *SHORT])
    return output


def test_a_run_leaves_one_complete_folder(finished, acdc_root):
    names = [name for name in files(finished) if not name.startswith(("events", "predictions"))]
    assert names == sorted(
        [
            *("config.yaml", "fingerprint.json", "metrics.csv", "overlays.png", "progress.png", "split.json"),
            *("checkpoints/best.pt", "checkpoints/latest.pt", "checkpoints/previous.pt", "summary.json"),
        ]
    )
    split = json.loads((finished / "split.json").read_text())
    assert len(split["labeled"]) == 2
    summary = json.loads((finished / "summary.json").read_text())
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (finished / "predictions").iterdir())
    assert sorted(summary["cases"]) == cases
    assert {case.split("_")[0] for case in cases} == set(split["test"])
    for values in [*summary["classes"].values(), summary["mean"]]:
        assert {"dice", "dice_std", "jaccard", "asd", "hd95", "misses"} <= set(values)
    prediction = nib.load(finished / "predictions" / f"{cases[0]}.nii.gz")
    image = nib.load(acdc_root / cases[0].split("_")[0] / f"{cases[0]}.nii.gz")
    assert prediction.shape == image.shape and np.array_equal(prediction.affine, image.affine)
    assert any((finished / "events").iterdir())
    for figure in ("overlays.png", "progress.png"):
        assert min(plt.imread(finished / figure).shape[:2]) > 300


def test_every_step_of_every_loss_is_in_the_csv(finished):
    with (finished / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 10))
    stages = [row["stage"] for row in rows]
    assert stages == ["global_distillation"] * 2 + ["local_distillation"] * 3 + ["anatomical_contrast"] * 4
    for column in ("loss", "supervised", "unsupervised", "contrast"):
        assert all(row[column] for row in rows[5:])
    assert [bool(row["val_dice"]) for row in rows] == [False] * 3 + [True, True, False, True, False, True]


@pytest.mark.parametrize("stop_after", [1, 3, 6])  # within each stage; checkpoints come every second step
def test_a_resumed_run_equals_an_uninterrupted_one(finished, acdc_root, tmp_path, monkeypatch, stop_after):
    output = tmp_path / "run"
    arguments = ["--data", acdc_root, "--labeled=2", f"--output={output}", *SHORT]
    interrupt_and_resume(arguments, output, stop_after, monkeypatch)
    assert_same_run(finished, output)


@pytest.mark.parametrize(
    "flags",
    [[f"--method={method}"] for method in METHODS if method != "action"] + [["--anatomical_contrast.variant=action++"]],
    ids=lambda flags: flags[0].rpartition("=")[2],
)
def test_other_methods_resume_to_the_same_run_too(flags, acdc_root, tmp_path, monkeypatch):
    arguments = ["--data", acdc_root, "--labeled=2", *SHORT, *flags]
    run([*arguments, f"--output={tmp_path / 'whole'}"])
    interrupt_and_resume([*arguments, f"--output={tmp_path / 'run'}"], tmp_path / "run", 7, monkeypatch)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def interrupt_and_resume(arguments, output, stop_after, monkeypatch):
    step = Trainer.train_step

    def interrupted(self, stage, number):
        if self.step >= stop_after:
            raise KeyboardInterrupt
        return step(self, stage, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(arguments)
    assert not (output / "summary.json").exists()
    run(["--resume", f"--output={output}"])  # the run's own configuration is enough


def assert_same_run(whole, resumed):
    assert (resumed / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert json.loads((resumed / "summary.json").read_text()) == json.loads((whole / "summary.json").read_text())
    states = [load_checkpoint(run / "checkpoints" / "latest.pt", torch.device("cpu")) for run in (whole, resumed)]
    ours, theirs = (state["learner"] for state in states)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        other = theirs[name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


@pytest.mark.parametrize("smoothing, best", [(0.0, (1, 3)), (0.9, (2, 2))])
def test_one_lucky_validation_does_not_choose_the_best_checkpoint(acdc_root, tmp_path, monkeypatch, smoothing, best):
    dice = iter([0.2, 0.8, 0.7, 0.1])  # after step 2 and 3 of stage 2, after step 2 and 4 of stage 3
    monkeypatch.setattr(Trainer, "_validate", lambda self: {"val_dice": next(dice)})
    run(
        [
            "--data",
            acdc_root,
            "--labeled=2",
            f"--output={tmp_path / 'run'}",
            *SHORT,
            f"--evaluation.smoothing={smoothing}",
        ]
    )
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt", torch.device("cpu"))
    assert (state["stage_index"], state["stage_step"]) == best


def test_a_checkpoint_holds_heads_banks_and_optimiser(finished):
    state = load_checkpoint(finished / "checkpoints" / "latest.pt", torch.device("cpu"))
    names = state["learner"].keys()
    heads = ("global_distillation.head", "local_distillation.head", "anatomical_contrast.representation")
    for part in ("network", *(f"stages.{head}" for head in heads)):
        for role in ("student", "teacher"):
            assert any(name.startswith(f"{part}.{role}.") for name in names)
    for bank in ("global_distillation.bank", "local_distillation.bank", "anatomical_contrast.pixel_bank"):
        assert state["learner"][f"stages.{bank}.features"].abs().sum() > 0
    assert len(state["optimizer"]["state"]) > 0


@pytest.mark.parametrize("method", [method for method in METHODS if method != "action"])
def test_baselines_run_with_as_many_updates(method, acdc_root, tmp_path):
    run(["--data", acdc_root, f"--method={method}", "--labeled=2", f"--output={tmp_path / 'run'}", *SHORT])
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + 2 + 3 + 4
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.parametrize("layout", PUBLISHED)
def test_every_published_configuration_starts(layout, acdc_root, lits_root, tmp_path):
    layers = ["--config", CONFIGS / "published.yaml", "--config", CONFIGS / f"{layout}.yaml"]
    for labeled in PUBLISHED[layout]:
        asked = parse_config([*map(str, layers), f"--labeled={labeled}"])
        assert asked.format == layout and asked.labeled == labeled and asked.input.size == (256, 256)
        assert asked.model.channels == (16, 32, 64, 128, 256) and asked.optimizer.teacher_momentum == 0.99
        assert [getattr(asked, stage).iterations for stage in METHODS["action"]] == [30000] * 3
    miniature = [
        *("--data", {"acdc": acdc_root, "lits": lits_root}[layout], "--input.size=[64,64]", "--labeled=1"),
        *("--split.proportions=[0.6,0.2,0.2]", "--model.window=32", "--model.stride=32", "--device=cpu"),
        *(f"--{stage}.iterations=1" for stage in METHODS["action"]),
    ]
    run([*layers, *miniature, f"--output={tmp_path / 'run'}"])
    assert (tmp_path / "run" / "summary.json").is_file()


def test_the_configuration_of_acdc_for_a_cpu_starts(acdc_root, tmp_path):
    layer = ["--config", CONFIGS / "acdc-cpu.yaml", "--data", acdc_root]
    assert parse_config([*map(str, layer)]).total_iterations == 4000
    run([*layer, *SHORT, "--input.size=[32,32]", "--labeled_patients=[patient001]", f"--output={tmp_path / 'run'}"])
    written = sorted((tmp_path / "run" / "predictions").iterdir())
    assert written and all(nib.load(path).shape == (32, 32, 4) for path in written)  # the files' own grids


def test_the_settings_for_ct_segment_nothing_outside_the_body(lits_root, tmp_path):
    output = tmp_path / "run"
    asked = ["--config", CONFIGS / "ct.yaml", "--data", lits_root, "--format=lits", "--input.size=[16,32]"]
    run([*asked, *SHORT, f"--output={output}"])
    written = sorted((output / "predictions").iterdir())
    assert written
    for path in written:
        prediction = np.asarray(nib.load(path).dataobj)
        assert prediction.shape == (32, 32, 4)
        assert not prediction[:, :3].any() and prediction[:, 3:].any()  # rows of air, see `lits_root`


def test_predict_writes_on_each_images_own_grid(finished, acdc_root, tmp_path):
    source = nib.load(next(acdc_root.glob("*/*_frame01.nii.gz")))
    affine = np.array([[0, -2.5, 0, 7], [0, 0, 4.0, -3], [1.25, 0, 0, 11], [0, 0, 0, 1.0]])
    images = []
    for name, shape in (("a.nii.gz", (40, 28, 3)), ("b.nii", (33, 50, 1))):
        array = np.resize(np.asarray(source.dataobj), shape).astype(np.int16)
        nib.save(nib.Nifti1Image(array, affine), tmp_path / name)
        images.append(tmp_path / name)
    written = predict.predict(finished, images, tmp_path / "out", "cpu")
    assert [path.name for path in written] == ["a.nii.gz", "b.nii.gz"]
    for path, image in zip(written, map(nib.load, images), strict=True):
        prediction = nib.load(path)
        assert prediction.shape == image.shape and np.allclose(prediction.affine, affine)
        assert set(np.unique(np.asarray(prediction.dataobj))) <= {0, 1, 2, 3}


def test_predict_refuses_to_replace_an_image_and_writes_nothing_for_a_bad_one(finished, acdc_root, tmp_path):
    good = next(acdc_root.glob("*/*_frame01.nii.gz"))
    with pytest.raises(InputError, match="would be replaced"):
        predict.predict(finished, [good], good.parent, "cpu")
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(good.read_bytes()[:50])
    with pytest.raises(InputError, match="bad.nii.gz"):
        predict.predict(finished, [good, bad], tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def copy(acdc_root, tmp_path):
    return Path(shutil.copytree(acdc_root, tmp_path / "data"))


def change_image(root, change):
    path = sorted(root.glob("*/*_frame*.nii.gz"))[0]
    image = nib.load(path)
    array = np.asarray(image.dataobj).astype(np.float32)
    nib.save(nib.Nifti1Image(change(array), image.affine), path)
    return path.name


def change_label(root, change):
    path = sorted(root.glob("*/*_gt.nii.gz"))[0]
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), path)
    return path.name


def truncate(root):
    path = sorted(root.glob("*/*_frame*.nii.gz"))[2]
    path.write_bytes(path.read_bytes()[:-40])
    return path.name


def not_gzip(root):
    path = sorted(root.glob("*/*_frame*.nii.gz"))[2]
    path.write_bytes(b"no gzip at all")
    return path.name


def with_nan(array):
    array[1, 1, 1] = np.nan
    return array


BAD_DATA = {
    "label of another shape": lambda root: change_label(root, lambda a: a[:-1]),
    "unknown label value": lambda root: change_label(root, lambda a: np.where(a == 1, 9, a).astype(np.uint8)),
    "NaN voxels": lambda root: change_image(root, with_nan),
    "truncated gzip": truncate,
    "not gzip": not_gzip,
}


@pytest.mark.parametrize("damage", BAD_DATA.values(), ids=BAD_DATA.keys())
def test_bad_files_are_named_and_nothing_is_written(damage, copy, tmp_path):
    name = damage(copy)
    patients = len(list(copy.glob("patient*")))
    every_label = [f"--labeled={round(patients * 0.7)}", "--method=supervised"]  # so that every file is read
    with pytest.raises(InputError, match=name):
        run(["--data", copy, *every_label, f"--output={tmp_path / 'run'}", *SHORT])
    assert not (tmp_path / "run").exists()


def test_missing_labels_of_the_labelled_and_too_few_patients(copy, tmp_path):
    for label in copy.glob("*/*_gt.nii.gz"):
        label.unlink()
    with pytest.raises(InputError, match="labels"):
        run(["--data", copy, "--labeled=1", f"--output={tmp_path / 'run'}", *SHORT])
    assert not (tmp_path / "run").exists()


BAD_ARGUMENTS = {
    "missing folder": (["--data=nowhere/at/all"], "nowhere/at/all"),
    "too many labelled": (["--labeled=1000"], "1000"),
    "unknown key": (["--no_such_setting=1"], "no_such_setting"),
    "unknown nested key": (["--model.no_such=1"], "no_such"),
    "bad value": (["--labeled=many"], "labeled"),
    "bad method": (["--method=magic"], "magic"),
    "bad device": (["--device=abacus"], "abacus"),
    "odd size": (["--input.size=[30,30]"], "input.size"),
    "nothing to resume": (["--resume"], "resume"),
}


@pytest.mark.parametrize(("arguments", "word"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_bad_arguments_are_one_sentence_and_nothing_is_written(arguments, word, acdc_root, tmp_path):
    with pytest.raises(InputError, match=word) as error:
        run(["--data", acdc_root, f"--output={tmp_path / 'run'}", *SHORT, *arguments])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_an_unknown_key_in_a_file_is_named(acdc_root, tmp_path):
    (tmp_path / "config.yaml").write_text("labeled: 1\nmodle: 3\n")
    with pytest.raises(InputError, match="modle"):
        run(["--config", tmp_path / "config.yaml", "--data", acdc_root, f"--output={tmp_path / 'run'}"])


def test_an_unknown_key_of_a_run_is_named_with_its_file(finished, tmp_path):
    run_folder = tmp_path / "run"
    shutil.copytree(finished, run_folder)
    config = run_folder / "config.yaml"
    config.write_text(config.read_text() + "modle: 3\n")
    with pytest.raises(InputError, match="modle") as error:
        predict.main([str(run_folder), str(tmp_path / "image.nii.gz"), "-o", str(tmp_path / "out")])
    assert str(config) in str(error.value)


def test_bad_input_exits_with_2_and_one_line(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "action.train", "--data", str(tmp_path / "absent"), "--output", str(tmp_path / "run")],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_never_overwritten_unasked(finished, acdc_root):
    before = {name: (finished / name).read_bytes() for name in files(finished)}
    with pytest.raises(InputError, match="--overwrite"):
        run(["--data", acdc_root, "--labeled=2", f"--output={finished}", *SHORT])
    with pytest.raises(InputError, match="seed"):
        run(["--data", acdc_root, "--labeled=2", f"--output={finished}", *SHORT, "--resume", "--seed=5"])
    assert {name: (finished / name).read_bytes() for name in files(finished)} == before


def test_overwrite_replaces_a_run_but_nothing_else(acdc_root, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    arguments = ["--data", acdc_root, "--method=supervised", "--baseline.iterations=1", *SHORT]
    with pytest.raises(InputError, match="not the folder of a run"):
        run([*arguments, f"--output={folder}", "--overwrite"])
    assert (folder / "chapter.txt").read_text() == "years of work"
    for _ in range(2):
        run([*arguments, f"--output={tmp_path / 'run'}", "--overwrite"])
    assert (tmp_path / "run" / "summary.json").is_file()


def test_an_interrupted_write_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    path = tmp_path / "latest.pt"
    save_checkpoint({"value": torch.ones(3)}, path)

    def breaks(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", breaks)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint({"value": torch.zeros(3)}, path)
    assert torch.equal(load_checkpoint(path, torch.device("cpu"))["value"], torch.ones(3))
    assert files(tmp_path) == ["latest.pt"]


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "best.pt"
    path.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(InputError, match="best.pt"):
        load_checkpoint(path, torch.device("cpu"))


def test_test_patients_take_no_part_in_training(acdc_root, tmp_path, monkeypatch):
    read = []
    original = Trainer.__init__

    def spy(self, config, learner, data, validation, *rest):
        read.append(([len(data.labeled), len(data.unlabeled)], [case.patient for case in validation]))
        original(self, config, learner, data, validation, *rest)

    monkeypatch.setattr(Trainer, "__init__", spy)
    run(["--data", acdc_root, "--labeled=2", f"--output={tmp_path / 'run'}", *SHORT])
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    ((pools, validation),) = read
    assert set(validation) == set(split["validation"]) and not set(validation) & set(split["test"])
    slices = {p.name: sum(nib.load(f).shape[2] for f in p.glob("*_gt.nii.gz")) for p in acdc_root.glob("patient*")}
    assert pools == [sum(slices[p] for p in split[key]) for key in ("labeled", "unlabeled")]
