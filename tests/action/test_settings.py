"""Settings: every number has a range, and what is outside is refused by its name before anything is read."""

import dataclasses
from pathlib import Path

import pytest
import torch
from test_train import SHORT

from action import memory, prepare, train
from action.choices import METHODS, SETTINGS
from action.cli import choose_device, load_config, parse_config, save_config
from action.config import TrainConfig, fill_in
from action.data.crops import CROPS
from action.data.formats import FORMATS
from action.data.intensities import INTENSITIES
from action.data.mixing import MIXES
from action.errors import InputError
from action.experiment import open_split, resolve
from action.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs"


def resolved(config, size=(256, 256)):
    return fill_in(config, "data", "output", (1.5, 1.5), size)


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
    "model.channels=[4]": "model.channels",
    "model.pooled=7": "model.pooled",
    "model.window=128": "model.window",
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


def test_layers_are_stacked_and_the_later_one_counts(tmp_path):
    lower, upper = tmp_path / "lower.yaml", tmp_path / "upper.yaml"
    lower.write_text("labeled: 5\nseed: 7\noptimizer:\n  lr: 0.5\n  momentum: 0.5\n")
    upper.write_text("labeled: 6\noptimizer:\n  momentum: 0.25\n")
    config = parse_config(["--config", str(lower), "--config", str(upper), "--seed=9"])
    assert (config.labeled, config.seed, config.optimizer.lr, config.optimizer.momentum) == (6, 9, 0.5, 0.25)
    assert parse_config(["--config", str(upper), "--config", str(lower)]).labeled == 5


def test_a_resolved_configuration_leaves_nothing_open_and_is_read_back(tmp_path):
    config = resolved(TrainConfig(method="supervised"))
    assert None not in [value for _, value in values(config)]
    assert config.baseline.iterations == config.total_iterations
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    (tmp_path / "config.yaml").write_text("labeled: 3\n")
    with pytest.raises(InputError, match="input.spacing or input.size is missing"):
        load_config(tmp_path / "config.yaml")


CHOICES = {
    "format": FORMATS,
    "method": METHODS,
    "anatomical_contrast.mix": MIXES,
    "input.crop": CROPS,
    "input.intensity": INTENSITIES,
}


@pytest.mark.parametrize("setting", CHOICES)
def test_choices_are_those_of_the_registries(setting):
    for name in CHOICES[setting]:
        parse_config([f"--{setting}={name}"])
    with pytest.raises(InputError, match=", ".join(f"'{name}'" for name in CHOICES[setting])):
        parse_config([f"--{setting}=something"])


def test_every_method_says_which_settings_it_reads():
    assert SETTINGS.keys() == METHODS.keys()
    groups = {name for name, value in vars(TrainConfig()).items() if dataclasses.is_dataclass(value)}
    assert all(set(read) <= groups for read in SETTINGS.values())


OTHER_VALUES = {
    "global_distillation": {"bank": 7},
    "local_distillation": {"bank": 7},
    "anatomical_contrast": {"queries": 7},
    "baseline": {"labeled": 7},
    "copy_paste": {"side": 0.25},
    "unimatch": {"drop": 0.25},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("group", OTHER_VALUES)
def test_a_run_goes_on_only_with_the_settings_that_its_method_reads(method, group, tmp_path):
    config, run = resolved(TrainConfig(method=method)), RunFolder(tmp_path)
    save_config(config, run.config)
    other = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **OTHER_VALUES[group])})
    if group in SETTINGS[method]:
        with pytest.raises(InputError, match=f"holds a run with other settings: {group} is"):
            train.check_same(other, run)
    else:
        train.check_same(other, run)


def test_the_home_folder_may_be_written_as_a_tilde(acdc_root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(acdc_root.parent))
    arguments = ["--method=supervised", "--baseline.iterations=1", "--labeled=2", *SHORT]
    train.main([f"--data=~/{acdc_root.name}", f"--output={tmp_path / 'run'}", *arguments])
    assert str(acdc_root) in (tmp_path / "run" / "config.yaml").read_text()


def test_named_patients_are_the_labelled_ones_and_their_number(acdc_root):
    config = resolve(parse_config([f"--data={acdc_root}", "--labeled_patients=[patient009,patient004,patient001]"]))
    assert config.labeled == 3 and config.output.endswith("-action-3-seed0")
    assert open_split(config)[1].labeled == ("patient001", "patient004", "patient009")


def test_the_processor_is_a_device():
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("size", [(32, 32), None])
@pytest.mark.parametrize(("window", "stride", "pooled"), [(16, 8, 7), (16, 3, 4), (4, 4, 8)])
def test_windows_that_are_no_whole_cells_are_refused_before_anything_is_read(size, window, stride, pooled):
    model = dataclasses.replace(TrainConfig().model, window=window, stride=stride, pooled=pooled)
    with pytest.raises(InputError, match="model.pooled"):
        dataclasses.replace(TrainConfig(), model=model, input=dataclasses.replace(TrainConfig().input, size=size))


LEFT_OPEN = {"data", "cache", "output", "split.file", "input.spacing", "input.size", "baseline.iterations"}


def values(settings, prefix=""):
    for declared in dataclasses.fields(settings):
        value, name = getattr(settings, declared.name), f"{prefix}{declared.name}"
        yield name, value
        if dataclasses.is_dataclass(value):
            yield from values(value, f"{name}.")


@pytest.mark.parametrize("name", [name for name, _ in values(TrainConfig())])
def test_null_is_refused_by_name_where_nothing_may_be_left_open(name, tmp_path):
    path, group = tmp_path / "settings.yaml", name.rpartition(".")
    path.write_text(f"{group[0]}:\n  {group[2]}: null\n" if group[0] else f"{name}: null\n")
    if name in LEFT_OPEN:
        parse_config(["--config", str(path)])
        return
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        parse_config(["--config", str(path)])


def test_a_baseline_needs_no_updates_of_the_stages():
    off = [f"--{stage}.iterations=0" for stage in ("global_distillation", "local_distillation", "anatomical_contrast")]
    assert parse_config(["--method=supervised", "--baseline.iterations=5", *off]).baseline.iterations == 5
    with pytest.raises(InputError, match="baseline.iterations"):
        parse_config(["--method=supervised", *off])


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--seed=-1", "seed is -1"),
        ("--seed=99999999999999999999", "seed"),
        ("--patients=-3", "-3 phantom patients"),
        ("--patients=100000000000", "100000000000 phantom patients"),
    ],
)
def test_numbers_of_the_phantom_are_refused_and_nothing_is_written(flag, words, tmp_path):
    with pytest.raises(InputError, match=words):
        prepare.main(["phantom", str(tmp_path / "phantom"), flag])
    assert not list(tmp_path.iterdir())


TOO_LARGE = {
    "networks": (["--model.channels=[8192,8192,8192]"], "model.channels .*GiB"),
    "pixel bank": (["--anatomical_contrast.pixel_bank=100000000", "--model.embedding=2048"], "pixel_bank .*GiB"),
    "slice bank": (["--global_distillation.bank=10000000", "--model.embedding=2048"], "global_distillation.bank .*GiB"),
    "window bank": (
        ["--local_distillation.bank=10000000", "--input.size=[1024,1024]"],
        "local_distillation.bank .*GiB",
    ),
}


@pytest.mark.parametrize(("flags", "words"), TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_what_no_memory_holds_is_refused_by_name_before_it_is_allocated(flags, words, monkeypatch):
    monkeypatch.setattr(memory, "_memory", lambda device: 16 * 2**30)
    asked = parse_config(["--input.size=[256,256]", *flags])
    config = resolved(asked, asked.input.size)
    with pytest.raises(InputError, match=words):
        memory.check_memory(config, 4, torch.device("cpu"))


def test_the_published_sizes_fit_a_small_memory(monkeypatch):
    monkeypatch.setattr(memory, "_memory", lambda device: 2**30)
    for path in CONFIGS.glob("*.yaml"):
        memory.check_memory(resolved(parse_config(["--config", str(path)])), 4, torch.device("cpu"))
