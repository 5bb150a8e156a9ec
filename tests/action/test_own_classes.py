"""Formats and stages that the settings name by their class."""

import csv
import pickle
import sys

import pytest
from own_classes import OneFrame
from test_train import SHORT, assert_same_run, interrupt_and_resume, run

from action import evaluate, prepare, report
from action.choices import SETTINGS, settings_of
from action.cli import load_config, parse_config
from action.data import open_dataset
from action.errors import InputError
from action.experiment import choose_output
from action.own import own_class
from action.run_folder import RunFolder
from action.stages import stage_classes, uses_unlabeled
from action.stages.base import Stage

OWN = [*SHORT, "--method=own_classes:Focal", "--format=own_classes:OneFrame", "--baseline.iterations=4"]


@pytest.fixture(scope="module")
def finished(acdc_root, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "whole"
    run(["--data", acdc_root, "--labeled=2", f"--output={output}", *OWN])
    return output


def test_a_run_with_own_classes_says_so_and_logs_their_losses(finished):
    folder = RunFolder(finished)
    config = load_config(folder.config)
    assert (config.method, config.format) == ("own_classes:Focal", "own_classes:OneFrame")
    assert pickle.loads(pickle.dumps(config)) == config  # as processes tell each other
    rows = list(csv.DictReader(folder.metrics.open()))
    assert [row["stage"] for row in rows] == ["focal"] * 4
    assert all(float(row["loss"]) > 0 for row in rows) and "supervised" not in rows[0]


def test_it_is_resumed_evaluated_and_reported(finished, acdc_root, tmp_path, monkeypatch):
    output = tmp_path / "run"
    interrupt_and_resume(["--data", acdc_root, "--labeled=2", f"--output={output}", *OWN], output, 3, monkeypatch)
    assert_same_run(finished, output)
    evaluate.main([str(output), "--overwrite"])
    report.main([str(output)])
    assert "own_classes:Focal" in (output / "report.html").read_text()
    with pytest.raises(InputError, match="with other settings: method is supervised, but .* says own_classes:Focal"):
        run(["--resume", f"--output={output}", "--method=supervised"])


def test_an_own_format_finds_its_cases(acdc_root, capsys):
    dataset = open_dataset(acdc_root, "own_classes.OneFrame")
    assert dataset.format == "own_classes.OneFrame" and dataset.class_names == OneFrame.class_names
    assert {case.name[-8:] for case in dataset.cases} == {"_frame01"}
    prepare.main(["check", str(acdc_root), "--format=own_classes:OneFrame"])
    assert f"{len(dataset.cases)} cases" in capsys.readouterr().out


def test_what_a_stage_learns_from_is_its_own(acdc_root, tmp_path):
    assert not uses_unlabeled("own_classes:Focal") and uses_unlabeled("own_classes:Pasted")
    assert list(stage_classes("own_classes:Pasted")) == ["pasted"]
    every_label = ["--data", acdc_root, "--labeled=7", *SHORT, "--baseline.iterations=1"]
    with pytest.raises(InputError, match="every training patient is labelled, so own_classes:Pasted has none"):
        run([*every_label, "--method=own_classes:Pasted", f"--output={tmp_path / 'pasted'}"])
    run([*every_label, "--method=own_classes:Focal", f"--output={tmp_path / 'focal'}"])


def test_an_own_stage_may_read_every_setting():
    assert set(settings_of("own_classes:Focal")) == {group for groups in SETTINGS.values() for group in groups}
    assert settings_of("mean-teacher") == SETTINGS["mean-teacher"]


def test_the_folder_of_a_run_has_the_class_without_its_module():
    assert choose_output(parse_config(["--data=x", "--method=a.b:Focal"])).name == "x-Focal-2-seed0"


BROKEN = {
    "import nowhere_else\n": "broken cannot be imported (ModuleNotFoundError: No module named 'nowhere_else')",
    "1 / 0\n": "broken cannot be imported (ZeroDivisionError: division by zero): correct it",
    "Net = 3\n": "'broken:Net', which is no class derived from action.stages.base.Stage: name one",
    "class Nets: pass\n": "but broken has no Net",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_class_that_cannot_be_used_is_named(text, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(InputError) as error:
        own_class("broken:Net", "method", Stage)
    assert BROKEN[text] in str(error.value)


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--method=no.such.place:Net", "method is 'no.such.place:Net', but there is no module no: correct the name"),
        (
            "--method=own_classes:Shallow",
            "method is 'own_classes:Shallow', which is no class derived from action.stages",
        ),
        ("--method=own_classes:Focl", "method is 'own_classes:Focl', but own_classes has no Focl: did you mean Focal?"),
        (
            "--format=own_classes:Focal",
            "format is 'own_classes:Focal', which is no class derived from action.data.cases",
        ),
        ("--method=own_classes:", "method is 'own_classes:', not one of 'action',"),
        ("--model.network=torch:Tensor", "model.network is 'torch:Tensor', which is no class derived from torch.nn"),
    ],
)
def test_nothing_is_written_for_a_wrong_name(flag, sentence, acdc_root, tmp_path):
    with pytest.raises(InputError) as error:
        run(["--data", acdc_root, f"--output={tmp_path / 'run'}", *SHORT, flag])
    assert sentence in str(error.value) and not (tmp_path / "run").exists()
