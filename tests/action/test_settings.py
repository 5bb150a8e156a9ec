"""Settings: every number has a range, and what is outside is refused by its name before anything is read."""

import dataclasses
from pathlib import Path

import pytest
import torch
from test_train import SHORT

from action import train
from action.cli import choose_device, parse_config
from action.config import TrainConfig
from action.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"


def numbers(settings, path=()):
    """Path, value and range of every field that holds a number or a tuple of numbers, or may hold one."""
    for declared in dataclasses.fields(settings):
        value = getattr(settings, declared.name)
        if dataclasses.is_dataclass(value):
            yield from numbers(value, (*path, declared.name))
        elif any(word in str(declared.type) for word in ("int", "float")):
            yield (*path, declared.name), value, declared.metadata.get("range")


NUMBERS = list(numbers(TrainConfig()))


def changed(path, value, settings=None):
    settings = TrainConfig() if settings is None else settings
    inner = value if len(path) == 1 else changed(path[1:], value, getattr(settings, path[0]))
    return dataclasses.replace(settings, **{path[0]: inner})


def test_every_number_is_found():
    assert len(NUMBERS) > 50 and ("optimizer", "momentum") in [path for path, _, _ in NUMBERS]


@pytest.mark.parametrize(("path", "value", "reach"), NUMBERS, ids=[".".join(path) for path, _, _ in NUMBERS])
def test_a_number_outside_its_range_is_refused_by_name(path, value, reach):
    assert reach is not None, f"{'.'.join(path)} has no range"
    low, high = reach
    bad = [float("nan"), float("inf"), -float("inf"), low - 1]
    bad += [] if high == float("inf") else [high * 2 + 1]
    for number in bad:
        wrong = (number, number) if isinstance(value, tuple) or path[-1] == "size" else number
        with pytest.raises(InputError, match=".".join(path).replace(".", r"\.")):
            changed(path, wrong)


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_lie_within(config):
    parse_config(["--config", str(config)])


BAD = {
    "evaluation.every=0": "evaluation.every",
    "optimizer.momentum=2": "optimizer.momentum",
    "optimizer.lr=1e20": "optimizer.lr",
    "optimizer.teacher_momentum=2.0": "teacher_momentum",
    "global_distillation.iterations=-5": "global_distillation.iterations",
    "global_distillation.iterations=null": "iterations",
    "global_distillation.labeled=0": "global_distillation.labeled",
    "model.stride=0": "model.stride",
    "model.channels=[]": "model.channels",
    "model.dropout=[0.1]": "model.dropout",
    "augmentation.brightness=[1.2,0.8]": "augmentation.brightness",
    "augmentation.blur=[1.2,0.8]": "augmentation.blur",
    "input.size=[0,0]": "input.size",
    "seed=-1": "seed",
    "device=mps": "device 'mps' is not supported",
    "device=meta": "device 'meta' is not supported",
}


@pytest.mark.parametrize(("flag", "words"), BAD.items(), ids=BAD.keys())
def test_the_command_line_refuses_in_one_sentence(flag, words, acdc_root, tmp_path):
    output = tmp_path / "run"
    with pytest.raises(InputError, match=words) as error:
        train.main(["--data", str(acdc_root), "--labeled=2", f"--output={output}", *SHORT, f"--{flag}"])
    assert "\n" not in str(error.value) and not output.exists()


def test_nothing_to_segment_with_is_refused():
    with pytest.raises(InputError, match="nothing would learn to segment"):
        parse_config(["--local_distillation.iterations=0", "--anatomical_contrast.iterations=0"])


def test_a_configuration_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "latin1.yaml"
    path.write_bytes("labeled: 1 # für\n".encode("latin-1"))
    with pytest.raises(InputError, match="latin1.yaml"):
        parse_config(["--config", str(path)])


def test_an_empty_configuration_changes_nothing(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert parse_config(["--config", str(path)]) == TrainConfig()


def test_the_home_folder_may_be_written_as_a_tilde(acdc_root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(acdc_root.parent))
    arguments = ["--method=supervised", "--baseline.iterations=1", "--labeled=2", *SHORT]
    train.main([f"--data=~/{acdc_root.name}", f"--output={tmp_path / 'run'}", *arguments])
    assert str(acdc_root) in (tmp_path / "run" / "config.yaml").read_text()


def test_the_processor_is_a_device():
    assert choose_device("cpu") == torch.device("cpu")
