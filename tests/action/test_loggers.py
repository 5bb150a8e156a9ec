"""What loggers are told of a run, how a resumed run finds them again, and what happens where one fails."""

import csv
import json
import os
from importlib.util import find_spec

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_train import SHORT, assert_same_run, interrupt_and_resume, run

from action import log
from action.errors import InputError
from action.loggers import LOGGERS
from action.loggers.base import Logger
from action.run_folder import RunFolder

FLAGS = [*SHORT, "--labeled=2", "--method=supervised", "--baseline.iterations=4"]


class Recorder(Logger):
    """Keeps what it is told, of every start."""

    package = "json"

    def __init__(self, start):
        self.start, self.said, self.figures, self.closed = start, [], [], 0
        self.identity = start.identity or "first"
        RECORDERS.append(self)

    def log(self, step, values):
        self.said.append((step, dict(values)))

    def figure(self, step, name, path):
        assert path.read_bytes().startswith(b"\x89PNG")
        self.figures.append((step, name))

    def close(self):
        self.closed += 1


RECORDERS: list[Recorder] = []


@pytest.fixture
def recorders(monkeypatch):
    """Those of every start of a run with the logger wandb."""
    monkeypatch.setitem(LOGGERS, "wandb", Recorder)
    RECORDERS.clear()
    return RECORDERS


def train(data, output, *flags):
    run(["--data", data, f"--output={output}", *FLAGS, *flags])
    return RunFolder(output)


def test_a_logger_is_told_every_number_the_figures_and_the_test_dice(recorders, acdc_root, tmp_path):
    folder = train(acdc_root, tmp_path / "run", "--loggers=[wandb]", "--model.dropout=[0,0.1,0.1]")
    (recorder,) = recorders
    rows = list(csv.DictReader(folder.metrics.open()))
    told = dict(recorder.said[:4])
    assert list(told) == [1, 2, 3, 4] == [int(row["step"]) for row in rows]
    for row in rows:
        values = {key: float(value) for key, value in row.items() if key not in ("step", "stage") and value}
        names = {key if key.startswith("val") else f"train/{key}": value for key, value in values.items()}
        assert told[int(row["step"])] == pytest.approx(names, rel=1e-5)
    dice = json.loads(folder.summary.read_text())["mean"]["dice"]
    assert recorder.said[4:] == [(4, {"test_dice": dice})]
    assert recorder.figures == [(4, "progress"), (4, "overlays")] and recorder.closed == 1
    settings = recorder.start.settings
    assert settings["optimizer.lr"] == 0.03 and settings["model.dropout"] == (0, 0.1, 0.1)
    assert json.loads(folder.loggers.read_text()) == {"wandb": "first"}
    assert not folder.events.exists()


def test_a_resumed_run_goes_on_with_its_loggers(recorders, acdc_root, tmp_path, monkeypatch):
    arguments = ["--data", acdc_root, *FLAGS, "--loggers=[tensorboard,wandb]"]
    interrupt_and_resume([*arguments, f"--output={tmp_path / 'run'}"], tmp_path / "run", 3, monkeypatch)
    first, second = recorders
    assert (first.start.identity, first.start.step, first.closed) == (None, 0, 1)
    assert (second.start.identity, second.start.step, second.closed) == ("first", 2, 1)
    assert [step for step, _ in second.said] == [3, 4, 4]
    run([*arguments, f"--output={tmp_path / 'whole'}"])
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert recorders[2].said == first.said[:2] + second.said
    events = EventAccumulator(str(tmp_path / "run" / "events")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert events.Tags()["images"] == ["progress", "overlays"] and len(events.Scalars("test_dice")) == 1


def test_loggers_may_change_when_a_run_is_resumed_and_go_when_it_is_replaced(recorders, acdc_root, tmp_path):
    folder = train(acdc_root, tmp_path / "run", "--loggers=[wandb]")
    train(acdc_root, tmp_path / "run", "--loggers=[]", "--resume")
    assert len(recorders) == 1 and folder.loggers.is_file()
    train(acdc_root, tmp_path / "run", "--loggers=[wandb]", "--overwrite")
    assert [recorder.start.identity for recorder in recorders] == [None, None]


def test_no_logger_changes_no_number(acdc_root, tmp_path):
    with_events, without = train(acdc_root, tmp_path / "a"), train(acdc_root, tmp_path / "b", "--loggers=[]")
    assert_same_run(with_events.root, without.root)
    assert with_events.events.is_dir() and not without.events.exists() and not without.loggers.exists()


def test_a_missing_package_is_named_before_anything_is_written(acdc_root, tmp_path, monkeypatch):
    monkeypatch.setattr(log, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="loggers names mlflow, but the package mlflow is not installed: pip"):
        train(acdc_root, tmp_path / "run", "--loggers=[mlflow]")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="loggers is 'wandbb', not one of 'mlflow', 'tensorboard', 'wandb'"):
        train(acdc_root, tmp_path / "run", "--loggers=[wandbb]")


def test_one_that_does_not_start_is_named_and_the_others_are_closed(recorders, acdc_root, tmp_path, monkeypatch):
    class Refused(Recorder):
        def __init__(self, start):
            raise RuntimeError("no key\nconfigured")

    monkeypatch.setitem(LOGGERS, "mlflow", Refused)
    with pytest.raises(InputError, match="the logger mlflow does not start .RuntimeError: no key configured."):
        train(acdc_root, tmp_path / "run", "--loggers=[wandb,mlflow]")
    assert [recorder.closed for recorder in recorders] == [1]
    train(acdc_root, tmp_path / "run", "--loggers=[wandb]", "--resume")


@pytest.mark.parametrize("act", ["log", "figure", "close"])
def test_one_that_fails_later_is_left_out_and_the_run_goes_on(act, recorders, acdc_root, tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(Recorder, act, fails)
    folder = train(acdc_root, tmp_path / "run", "--loggers=[wandb]")
    assert folder.summary.is_file()
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert warnings == ["warning: wandb failed (ConnectionError: the server is gone): the run goes on without it"]


@pytest.mark.skipif(not find_spec("mlflow"), reason="needs mlflow")
def test_mlflow_keeps_one_run_through_a_resumption(acdc_root, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    arguments = ["--data", acdc_root, f"--output={tmp_path / 'run'}", *FLAGS, "--loggers=[mlflow]"]
    interrupt_and_resume(arguments, tmp_path / "run", 3, monkeypatch)
    client = MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("action").experiment_id])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["optimizer.lr"] == "0.03"
    losses = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, "train/loss")}
    rows = csv.DictReader((tmp_path / "run" / "metrics.csv").open())
    assert losses == pytest.approx({int(row["step"]): float(row["loss"]) for row in rows}, rel=1e-5)
    assert {"val_dice_left ventricle", "test_dice"} <= found.data.metrics.keys()
    assert {file.path for file in client.list_artifacts(found.info.run_id)} == {"progress.png", "overlays.png"}


@pytest.mark.skipif(not find_spec("wandb"), reason="needs wandb")
def test_weights_and_biases_keep_one_run_through_a_resumption(acdc_root, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    arguments = ["--data", acdc_root, f"--output={tmp_path / 'run'}", *FLAGS, "--loggers=[wandb]"]
    interrupt_and_resume(arguments, tmp_path / "run", 3, monkeypatch)
    identity = json.loads((tmp_path / "run" / "loggers.json").read_text())["wandb"]
    written = sorted(tmp_path.glob("wandb/offline-run-*"))
    assert written and all(path.name.endswith(f"-{identity}") for path in written)
    assert all(os.path.getsize(file) > 1000 for path in written for file in path.glob("*.wandb"))
