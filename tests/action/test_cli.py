"""The command line explains itself: its lists fit a screen, and errors name what is nearest."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_settings import NUMBERS

from action import __main__ as overview
from action import __version__, compare, crossval, evaluate, predict, prepare, report, train
from action.cli import config_parser, load_config, parse_config
from action.commands import COMMANDS, example
from action.config import reach
from action.errors import InputError
from action.suggestions import nearest

MODULES = {
    "train": train,
    "crossval": crossval,
    "evaluate": evaluate,
    "predict": predict,
    "report": report,
    "compare": compare,
    "prepare": prepare,
}
SCREEN = 40


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def page(main, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    return capsys.readouterr().out


def test_commands_are_listed_without_loading_pytorch() -> None:
    script = "import runpy, sys; sys.argv = ['action']\ntry: runpy.run_module('action', run_name='__main__')\n"
    script += "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    *_, last = result.stdout.splitlines()
    assert last == "0 False"
    assert all(example(name) in result.stdout and command.does in result.stdout for name, command in COMMANDS.items())
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_no_command_loads_monai_before_it_works() -> None:
    modules = ", ".join(f"action.{name}" for name in COMMANDS)
    script = f"import sys, {modules}; print('torch' in sys.modules, 'monai' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "False"]


def test_every_command_is_listed() -> None:
    entry_points = {path.stem for path in Path(train.__file__).parent.glob("*.py") if "run(main)" in path.read_text()}
    assert entry_points == set(COMMANDS) == set(MODULES)


def test_a_command_may_follow_as_a_word(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["action", "evaluate", "--help"])
    monkeypatch.delitem(sys.modules, "action.evaluate")
    assert "usage: python -m action.evaluate" in page(overview.main, ["evaluate", "--help"], capsys)


def test_an_unknown_command_is_an_error_with_the_nearest(capsys) -> None:
    assert overview.main(["trian"]) == 2
    assert capsys.readouterr().err == "error: there is no command 'trian': did you mean train?\n"
    assert overview.main(["xyz"]) == 2
    assert "choose one of train, crossval, evaluate, predict, report, compare, prepare" in capsys.readouterr().err


def test_the_version_is_printed(capsys) -> None:
    assert overview.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_and_ends_with_an_example(name, capsys) -> None:
    lines = page(MODULES[name].main, ["--help"], capsys).rstrip().splitlines()
    assert len(lines) <= SCREEN and max(map(len, lines)) <= 80
    assert lines[0].startswith(f"usage: python -m action.{name}")
    assert COMMANDS[name].does in lines
    assert lines[-2:] == ["example:", f"  {example(name)}"]


@pytest.mark.parametrize("command", ["phantom", "check"])
def test_help_of_a_subcommand_has_an_example(command, capsys) -> None:
    assert f"  python -m action.prepare {command} " in page(prepare.main, [command, "--help"], capsys)


def test_help_of_the_training_has_the_main_options_alone(capsys) -> None:
    text = page(train.main, ["--help"], capsys)
    for option in "data format method labeled seed output config resume overwrite device precision help-all".split():
        assert f"  --{option}" in text
    assert "--optimizer" not in text and "--compile" not in text


def test_examples_parse() -> None:
    assert parse_config(COMMANDS["train"].example.split()).labeled == 3


def test_all_settings_are_listed_with_their_ranges(capsys) -> None:
    text = " ".join(page(train.main, ["--help-all"], capsys).split())
    for path, value, (low, high) in NUMBERS:
        _, found, rest = text.partition(f"--{'.'.join(path)} ")
        assert found, path
        many = isinstance(value, tuple) or path[0] == "input"
        assert f", {'each ' if many else ''}{reach(low, high)}, default:" in rest.partition(" --")[0], path


WRONG = {
    "--labelled=3": "there is no --labelled: did you mean --labeled?",
    "--labeled-patients=[a]": "there is no --labeled-patients: did you mean --labeled_patients?",
    "--anatomical_contrast.unlabelled=3": "did you mean --anatomical_contrast.unlabeled?",
    "--optimiser.lr=1": "did you mean --optimizer.lr?",
    "--lr=1": "did you mean --optimizer.lr?",
    "--zzz": "there is no --zzz: --help-all lists what there is",
    "--resum": "did you mean --resume?",
    "--format=acd": "format is 'acd', not one of 'auto', 'acdc', 'folders', 'hdf5', 'lits', 'nnunet': did you mean acd",
    "--input.crop=bodies": "input.crop is 'bodies', not one of 'none', 'body': did you mean body?",
    "--seed=x": "seed is 'x': it must be a whole number",
    "--seed=null": "seed is null: it must be a whole number",
    "--model.channels=3": "model.channels is '3': it must be a list, such as [1,2]",
    "words": "'words' belongs to no option",
}


@pytest.mark.parametrize(("argument", "sentence"), WRONG.items(), ids=WRONG)
def test_what_is_wrong_is_named_with_what_is_nearest(argument, sentence) -> None:
    with pytest.raises(InputError) as error:
        train.main([argument])
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_every_wrong_flag_is_named() -> None:
    with pytest.raises(InputError, match="no --sed: did you mean --seed.*no --outputt: did you mean --output"):
        train.main(["--sed=2", "--outputt", "x"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["chek", "x"], "not one of 'phantom', 'check', 'convert': did you mean check?"),
        (["check", "x", "--formt=acdc"], "there is no --formt: did you mean --format?"),
        (["check", "x", "--format=acd"], "did you mean acdc?"),
        (["phantom", "x", "--patient=2"], "there is no --patient: did you mean --patients?"),
        (["phantom", "x", "--colour"], "there is no --colour: --help lists what there is"),
    ],
)
def test_subcommands_name_the_nearest(arguments, sentence, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        prepare.main(arguments)
    assert sentence in str(error.value) and not list(tmp_path.iterdir())


def test_wrong_keys_are_named_with_their_file(tmp_path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("labelled: 3\noptimizer:\n  lr: 0.1\n  momentm: 0.5\nanatomical: {mix: none}\n")
    with pytest.raises(InputError) as error:
        parse_config(["--config", str(path)])
    assert str(error.value) == (
        f"{path}: there is no setting labelled: did you mean labeled?; "
        "there is no setting optimizer.momentm: did you mean optimizer.momentum?; "
        "there is no setting anatomical: did you mean anatomical_contrast?"
    )
    with pytest.raises(InputError) as error:
        load_config(path)
    assert str(error.value).count(str(path)) == 1
    path.write_text("method: acton\n")
    with pytest.raises(InputError, match=r"settings.yaml: method is 'acton', not one of .*: did you mean action\?"):
        parse_config(["--config", str(path)])


def test_names_without_their_group_find_it_and_far_ones_find_nothing() -> None:
    known = config_parser().flags
    assert nearest("iterations", known) == [
        f"{group}.iterations"
        for group in ("global_distillation", "local_distillation", "anatomical_contrast", "baseline")
    ]
    assert nearest("local_distilation.iterations", known) == ["local_distillation.iterations"]
    assert nearest("optimizer.beta", known) == nearest("zzz", known) == nearest("zzz.zzz", known) == []


@pytest.mark.skipif(not find_spec("argcomplete"), reason="needs argcomplete")
@pytest.mark.parametrize(
    ("typed", "offered"), [("--lab", {"--labeled", "--labeled_patients"}), ("--compile t", {"true"})]
)
def test_tab_completes_options_and_choices(typed, offered, tmp_path) -> None:
    line, out = f"python -m action.train {typed}", tmp_path / "offered"
    environment = {"_ARGCOMPLETE": "3", "_ARGCOMPLETE_SUPPRESS_SPACE": "1", "_ARGCOMPLETE_IFS": "\n"}
    environment |= {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    environment |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(out)}
    subprocess.run(line.replace("python", sys.executable, 1).split()[:3], env={**os.environ, **environment}, check=True)
    assert set(out.read_text().split()) == offered


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_marked_for_completion(name) -> None:
    assert MODULES[name].__file__ and Path(MODULES[name].__file__).read_text().startswith("# PYTHON_ARGCOMPLETE_OK\n")


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (
            predict,
            ["RUN", "--ensemble", "OTHER", "scan.nii.gz", "-o", "new"],
            "give IMAGES, in front of --ensemble and",
        ),
        (
            predict,
            ["RUN", "--largest_component", "scan.nii.gz", "-o", "new"],
            "after which all names belong to the flag",
        ),
        (predict, ["RUN", "scan.nii.gz"], "give --output: --help shows how"),
        (evaluate, ["--largest_component", "RUN"], "give RUN, in front of --largest_component"),
        (compare, [], "give RUNS: --help shows how"),
    ],
)
def test_a_missing_argument_is_named_with_the_flag_that_may_have_taken_it(command, arguments, said):
    with pytest.raises(InputError) as raised:
        command.main(arguments)
    assert said in str(raised.value)
