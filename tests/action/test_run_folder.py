"""What --overwrite, a second process, damage and a move of the data do to a run's folder."""

import json
import os
import shutil
import signal
import zipfile
from pathlib import Path

import pytest
import torch

from action import evaluate, train
from action.errors import InputError
from action.run_folder import RunFolder, load_checkpoint
from action.trainer import Trainer

SHORT = [
    "--method=supervised",
    "--labeled=2",
    "--baseline.iterations=3",
    "--model.channels=[4,6,8]",
    "--device=cpu",
    "--evaluation.every=2",
    "--evaluation.checkpoint_every=1",
]


def run(*arguments):
    train.main([str(argument) for argument in arguments])


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(acdc_root, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "whole"
    run("--data", acdc_root, *SHORT, "--output", output)
    return output


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def own_project(folder, data):
    (folder / "config.yaml").write_text("labeled: 1\ndevice: cpu\n")
    (folder / "thesis.txt").write_text("months of work")


def copied_config(folder, data):
    shutil.copy(data.parent / "run" / "config.yaml", folder)  # of a run elsewhere
    (folder / "split.json").write_text(json.dumps({"train": [], "validation": [], "test": []}))


def note_beside(folder, data):
    shutil.copytree(data.parent / "run", folder, dirs_exist_ok=True)
    (folder / "predictions" / "patient001_frame01_corrected.nii.gz").write_bytes(b"by hand")


def empty_folder_beside(folder, data):
    shutil.copytree(data.parent / "run", folder, dirs_exist_ok=True)
    (folder / "checkpoints" / "best").mkdir()


def predictions_elsewhere(folder, data):
    shutil.copytree(data.parent / "run", folder, dirs_exist_ok=True)
    shutil.move(folder / "predictions", folder.parent / "elsewhere")
    (folder / "predictions").symlink_to(folder.parent / "elsewhere", target_is_directory=True)


def data_inside(folder, data):
    shutil.copytree(data.parent / "run", folder, dirs_exist_ok=True)
    label = sorted(data.glob("*/*_gt.nii.gz"))[0]
    prediction = sorted((folder / "predictions").iterdir())[0]
    label.unlink()
    label.symlink_to(prediction)  # a prediction that serves as a label


REFUSED = {
    own_project: "not the folder of a run",
    copied_config: "not the folder of a run",
    note_beside: "corrected.nii.gz",
    empty_folder_beside: "checkpoints/best",
    predictions_elsewhere: "predictions",
    data_inside: "which the new run reads",
}


@pytest.mark.parametrize(("make", "word"), REFUSED.items(), ids=[make.__name__ for make in REFUSED])
def test_overwrite_refuses_what_is_not_a_runs_alone(make, word, copy, acdc_root, tmp_path):
    data, folder = Path(shutil.copytree(acdc_root, tmp_path / "data")), tmp_path / "folder"
    folder.mkdir()
    make(folder, data)
    before = contents(folder)
    with pytest.raises(InputError, match=word):
        run("--data", data, *SHORT, "--output", folder, "--overwrite")
    assert contents(folder) == before


def test_overwrite_refuses_the_working_directory(copy, acdc_root, monkeypatch):
    before = contents(copy)
    for inside in (copy, copy / "checkpoints"):
        monkeypatch.chdir(inside)
        with pytest.raises(InputError, match="working directory"):
            run("--data", acdc_root, *SHORT, "--output", copy, "--overwrite")
    assert contents(copy) == before


def test_overwrite_waits_until_the_data_are_read(copy, acdc_root, tmp_path):
    data, before = Path(shutil.copytree(acdc_root, tmp_path / "data")), contents(copy)
    for image in data.glob("*/*_frame??.nii.gz"):
        image.write_bytes(image.read_bytes()[:-30])
    with pytest.raises(InputError):
        run("--data", data, *SHORT, "--output", copy, "--overwrite")
    assert contents(copy) == before


def test_overwrite_takes_a_run_that_was_killed_in_its_evaluation_and_a_moved_one(copy, acdc_root):
    (copy / "summary.json").unlink()
    (copy / "checkpoints" / ".partial-123-latest.pt").write_bytes(b"half")
    (copy / "predictions" / f".partial-123-{os.listdir(copy / 'predictions')[0]}").write_bytes(b"half")
    run("--data", acdc_root, *SHORT, "--output", copy, "--overwrite", "--seed=1")
    assert (copy / "summary.json").is_file() and not list(copy.rglob(".*"))
    assert len(list((copy / "events").iterdir())) == 1


def hold(folder):
    """A process that owns the folder until it is killed. Returns its id."""
    ready, tell = os.pipe()
    if (pid := os.fork()) == 0:
        with RunFolder(folder).owned():
            os.write(tell, b"1")
            signal.pause()
        os._exit(1)
    os.close(tell)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    return pid


@pytest.mark.parametrize("there", [False, True], ids=["new", "run"])
def test_a_second_process_is_refused_until_the_first_has_died(there, finished, acdc_root, tmp_path):
    folder = tmp_path / "run"
    if there:
        shutil.copytree(finished, folder)
    holder = hold(folder)
    try:
        before = contents(folder)
        asked = ["--data", acdc_root, *SHORT, "--output", folder]
        for flags in [["--overwrite"], ["--resume"]] if there else [["--overwrite"], []]:
            with pytest.raises(InputError, match=f"in use by another process .pid {holder}"):
                run(*asked, *flags)
        if there:
            with pytest.raises(InputError, match=str(holder)):
                evaluate.main([str(folder), "--overwrite"])
        assert contents(folder) == before
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    assert RunFolder(folder).lock.exists()  # left by the dead process, and in nobody's way
    run(*asked, *(["--resume"] if there else []))
    assert (folder / "summary.json").is_file() and not RunFolder(folder).lock.exists()


def test_a_refused_start_leaves_no_folder_and_a_killed_one_starts_again(acdc_root, tmp_path):
    folder = RunFolder(tmp_path / "far" / "run")
    with pytest.raises(RuntimeError), folder.owned():
        raise RuntimeError
    assert not (tmp_path / "far").exists()
    folder.checkpoints.mkdir(parents=True)
    folder.lock.touch()
    (folder.root / ".partial-77-config.yaml").write_text("data: half")
    assert folder.is_empty()
    run("--data", acdc_root, *SHORT, "--output", folder.root)
    assert folder.summary.is_file() and not list(folder.root.rglob(".*"))


def test_a_run_without_anything_but_its_configuration_can_be_resumed_and_replaced(copy, finished, acdc_root):
    for flag in ("--resume", "--overwrite"):
        for path in copy.iterdir():
            if path.name != "config.yaml":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        config = (copy / "config.yaml").read_text().replace(str(finished), str(copy))
        (copy / "config.yaml").write_text(config)
        run("--data", acdc_root, *SHORT, "--output", copy, flag)
        assert (copy / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


def flip(path, place=0.5):
    """A bit of the checkpoint's largest tensor; between tensors there is padding, which no checksum covers."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
    name, extra = (int.from_bytes(content[entry.header_offset + at :][:2], "little") for at in (26, 28))
    content[entry.header_offset + 30 + name + extra + int(entry.file_size * place)] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, truncate, empty])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(damage, copy, finished, capsys):
    checkpoints = copy / "checkpoints"
    damage(checkpoints / "latest.pt")
    run("--resume", "--output", copy)
    assert f"{checkpoints / 'latest.pt'} is not a readable checkpoint" in capsys.readouterr().out
    for name in ("metrics.csv", "summary.json"):
        assert (copy / name).read_bytes() == (finished / name).read_bytes()
    assert_equal(*(load_checkpoint(f / "checkpoints" / "latest.pt", torch.device("cpu")) for f in (copy, finished)))


def assert_equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_two_damaged_checkpoints_are_an_error_and_stay(copy):
    for name in ("latest.pt", "previous.pt"):
        flip(copy / "checkpoints" / name)
    before = contents(copy)
    with pytest.raises(InputError, match=r"latest\.pt .*previous\.pt.*--overwrite"):
        run("--resume", "--output", copy)
    assert contents(copy) == before


def test_every_flipped_bit_of_a_tensor_is_found(copy):
    path = copy / "checkpoints" / "best.pt"
    whole = path.read_bytes()
    for place in (0.2, 0.4, 0.6, 0.8):
        flip(path, place)
        with pytest.raises(InputError, match=r"best\.pt"):
            load_checkpoint(path, torch.device("cpu"))
        path.write_bytes(whole)


def interrupted_copy(acdc_root, tmp_path, monkeypatch):
    data = Path(shutil.copytree(acdc_root, tmp_path / "data"))
    step = Trainer.train_step

    def stop(self, stage, number):
        if number == 2:
            raise KeyboardInterrupt
        return step(self, stage, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_step", stop)
        run("--data", data, *SHORT, "--output", tmp_path / "run")
    return data, tmp_path / "run"


def test_data_that_moved_are_said_with_data(acdc_root, finished, tmp_path, monkeypatch):
    data, folder = interrupted_copy(acdc_root, tmp_path, monkeypatch)
    moved = data.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="--data"):
        run("--resume", "--output", folder)
    run("--resume", "--output", folder, "--data", moved)
    assert (folder / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()
    assert str(moved) in (folder / "config.yaml").read_text()  # the next call needs no flag
    evaluate.main([str(folder), "--overwrite"])


@pytest.mark.parametrize("other", ["volume", "patient", "classes"])
def test_other_data_of_the_same_names_are_refused(other, acdc_root, tmp_path, monkeypatch):
    data, folder = interrupted_copy(acdc_root, tmp_path, monkeypatch)
    if other == "volume":
        shutil.copy(
            data / "patient001" / "patient001_frame01.nii.gz", data / "patient004" / "patient004_frame01.nii.gz"
        )
    elif other == "patient":
        shutil.rmtree(data / "patient001")  # an unlabelled one, which this method does not read
    else:
        (data / "dataset.json").write_text(json.dumps({"classes": ["background", "a", "b", "c"]}))
    before = contents(folder)
    words = {"volume": "patient004_frame01", "patient": "split", "classes": "classes"}
    with pytest.raises(InputError, match=words[other]):
        run("--resume", "--output", folder, "--data", data)
    assert contents(folder) == before
