"""Networks that the settings name by their class: what is taken from them, what is said about wrong ones, and runs."""

import dataclasses
import json
import shutil

import pytest
import torch
from monai.networks.nets import BasicUNet
from test_train import SHORT, assert_same_run, interrupt_and_resume, run

from action import evaluate, predict, report
from action.cli import load_config, parse_config, save_config
from action.config import ModelConfig, TrainConfig, fill_in
from action.errors import InputError
from action.experiment import load_network
from action.inference import segment
from action.model.build import make_network
from action.model.teacher import StudentTeacher
from action.stages import make_learner
from action.stages.base import Stage

LAYERS = ("down_4", "upcat_4", "upcat_3", "upcat_2", "upcat_1")
WIDTHS = [4, 4, 6, 6, 8, 5]


def settings(network="monai.networks.nets.BasicUNet", layers=LAYERS, arguments=None, method="action", size=(32, 32)):
    arguments = {"features": WIDTHS} if arguments is None else arguments
    model = ModelConfig(network=network, arguments=arguments, feature_layers=layers, window=16, stride=8, pooled=4)
    return fill_in(TrainConfig(method=method, model=model), "data", "output", (1.0, 1.0), size)


def images(count=3):
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return make_network(settings(), 1, 3).eval()


def levels(inner: BasicUNet, x):
    """What its layers compute, called one after the other."""
    down = [inner.conv_0(x)]
    for layer in (inner.down_1, inner.down_2, inner.down_3, inner.down_4):
        down.append(layer(down[-1]))
    up = [down[-1]]
    for layer, skip in zip((inner.upcat_4, inner.upcat_3, inner.upcat_2, inner.upcat_1), down[-2::-1], strict=True):
        up.append(layer(up[-1], skip))
    return up


@torch.no_grad()
def test_features_are_the_outputs_of_the_named_layers(network):
    x = images()
    output, expected = network(x), levels(network.inner, x)
    assert network.widths == tuple(maps.shape[1] for maps in expected) == (8, 6, 6, 4, 5)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(output.features, expected, strict=True))
    assert torch.equal(output.logits, network.inner.final_conv(expected[-1]))


@torch.no_grad()
def test_the_coarsest_map_costs_no_decoder(network):
    x, calls = images(), []
    network.inner.upcat_4.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(network.coarsest(x), levels(network.inner, x)[0])
    assert not calls[1:]  # the one of ``levels``
    assert len(network(x).features) == 5 and len(calls) == 2  # and the next pass runs to its end


@torch.no_grad()
def test_a_change_of_the_coarsest_map_reaches_the_logits_and_lasts_one_pass(network):
    x = images()
    plain = network(x).logits
    assert not torch.equal(network.perturbed(x, torch.zeros_like), plain)
    assert torch.equal(network.perturbed(x, lambda maps: maps), plain) and torch.equal(network(x).logits, plain)


@torch.no_grad()
def test_a_teacher_has_features_of_its_own(network):
    pair = StudentTeacher(network).eval()
    for parameter in pair.teacher.parameters():
        parameter.zero_()
    x = images()
    student, teacher = pair.student(x), pair.teacher(x)
    assert not any(maps.any() for maps in teacher.features)
    assert all(maps.any() for maps in student.features)


def test_measuring_changes_neither_weights_nor_random_numbers():
    torch.manual_seed(5)
    shallow = make_network(settings("own_classes:Shallow", (), {}, "supervised"), 1, 3)
    after = torch.rand(1)
    torch.manual_seed(5)
    plain = type(shallow.inner)(1, 3)
    assert torch.equal(after, torch.rand(1))
    for name, value in plain.state_dict().items():
        assert torch.equal(shallow.inner.state_dict()[name], value), name


def test_logits_are_in_single_precision_under_autocast(network):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(images())
    assert output.logits.dtype == torch.float32 and output.features[-1].dtype == torch.bfloat16


SHALLOW = "own_classes:Shallow"
WRONG = {
    "no module": (("no_such:Net", (), {}), "model.network is 'no_such:Net', but there is no module no_such: correct"),
    "no class": (("own_classes:Shalow", (), {}), "own_classes has no Shalow: did you mean Shallow?"),
    "no network": (("pathlib:Path", (), {}), "is no class derived from torch.nn.modules.module.Module: name one"),
    "arguments": (
        (SHALLOW, (), {"depth": 3}),
        "built with in_channels=1, out_channels=3, depth=3 (TypeError",
    ),
    "taken": ((SHALLOW, (), {"in_channels": 1}), "model.arguments names in_channels, which the data decide"),
    "no layer": (
        (SHALLOW, ("dwn", "up"), {}),
        f"feature_layers: {SHALLOW} has no layer 'dwn': did you mean down?",
    ),
    "no layer at all": ((SHALLOW, ("zzz",), {}), "'zzz': its outer layers are down, norm, drop, up, flat, unused, out"),
    "twice": ((SHALLOW, ("up", "up"), {}), "model.feature_layers names 'up' twice"),
    "fine first": ((SHALLOW, ("up", "down"), {}), "are of 32 x 32, 16 x 16 pixels: name the coarsest first"),
    "none fine": ((SHALLOW, ("down",), {}), "are of 16 x 16 pixels: the last must be as large as the image, 32 x 32"),
    "no maps": (
        (SHALLOW, ("flat",), {}),
        "'flat' of own_classes:Shallow gives [2, 8192], not maps [B, C, h, w]",
    ),
    "not computed": ((SHALLOW, ("unused",), {}), "the layer 'unused' of own_classes:Shallow was not computed"),
    "coarse logits": (
        ("own_classes:Coarse", (), {}),
        "gives [2, 3, 16, 16] for images [2, 1, 32, 32], not logits [2, 3, 32, 32]: change model.arguments",
    ),
    "a list": (("own_classes:Deep", (), {}), "model.network own_classes:Deep gives a list for images"),
    "fails": (
        ("monai.networks.nets:UNet", (), {"channels": [4, 6, 8], "strides": [3, 3]}),
        "model.network monai.networks.nets:UNet fails on images [2, 1, 32, 32] (RuntimeError: Sizes of tensors",
    ),
    "layers of a native one": (("own_classes:Native", ("up",), {}), "own_classes:Native says itself what its features"),
    "widths of a native one": (
        ("own_classes:Native", (), {"says": 4}),
        "says in_channels 1 and widths (3, 4), but they are 1 and (3, 3): correct the class",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_network_that_does_not_fit_is_named_in_a_sentence(case):
    (name, layers, arguments), sentence = WRONG[case]
    with pytest.raises(InputError) as error:
        make_network(settings(name, layers, arguments), 1, 3)
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["action", "unimatch"])
def test_methods_that_compare_features_ask_for_layers(method):
    with pytest.raises(InputError, match=f"method {method} uses features of the network: name layers of {SHALLOW} in"):
        make_learner(settings(SHALLOW, (), {}, method), 3)
    learner = make_learner(settings("own_classes:Native", (), {}, method), 3)
    assert isinstance(next(iter(learner.stages.values())), Stage)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--model.network=unett"], "model.network is 'unett': it must be unet, or a class, package.module:Class"),
        (["--model.feature_layers=[up]"], "model.arguments and model.feature_layers are not for model.network unet"),
        (["--model.arguments={a: 1}"], "model.arguments and model.feature_layers are not for model.network unet"),
    ],
)
def test_settings_that_do_not_go_together_are_named(flags, sentence):
    with pytest.raises(InputError) as error:
        parse_config(flags)
    assert sentence in str(error.value)


def test_arguments_that_a_file_would_not_give_back_are_named():
    with pytest.raises(InputError, match="model.arguments is .*: it may hold numbers, texts, true, false, null"):
        TrainConfig(model=ModelConfig(network="a:B", arguments={"features": (4, 6)}))


def test_arguments_are_read_back_from_a_runs_configuration(tmp_path):
    config = settings(arguments={"features": WIDTHS, "act": ["LeakyReLU", {"negative_slope": 0.2}], "dropout": 0.1})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_other_widths_than_the_built_in_ones_decide_the_heads():
    learner = make_learner(settings(), 3)
    first = learner.stages["global_distillation"].head.student.project[0]
    assert first.in_features == 8
    assert learner.stages["anatomical_contrast"].representation.student.channels == (8, 6, 6, 4, 5)


FLAGS = [
    *SHORT,
    "--model.network=monai.networks.nets.BasicUNet",
    f"--model.arguments={{features: {WIDTHS}}}",
    f"--model.feature_layers=[{','.join(LAYERS)}]",
]


@pytest.fixture(scope="module")
def finished(acdc_root, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "whole"
    run(["--data", acdc_root, "--labeled=2", f"--output={output}", *FLAGS])
    return output


def test_a_resumed_run_equals_an_uninterrupted_one(finished, acdc_root, tmp_path, monkeypatch):
    output = tmp_path / "run"
    interrupt_and_resume(["--data", acdc_root, "--labeled=2", f"--output={output}", *FLAGS], output, 6, monkeypatch)
    assert_same_run(finished, output)


def test_its_run_is_predicted_with_evaluated_averaged_and_reported(finished, acdc_root, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    before = json.loads((copy / "summary.json").read_text())
    evaluate.main([str(copy), "--overwrite"])
    assert json.loads((copy / "summary.json").read_text()) == before
    report.main([str(copy)])
    assert "monai.networks.nets.BasicUNet" in (copy / "report.html").read_text()
    other = tmp_path / "built-in"
    run(["--data", acdc_root, "--labeled=2", f"--output={other}", *SHORT, "--method=supervised"])
    image = next(acdc_root.glob("patient001/*_frame01.nii.gz"))
    for folder, more in (("alone", []), ("mean", ["--ensemble", str(other)])):
        predict.main([str(copy), str(image), "-o", str(tmp_path / folder), *more])
        assert len(list((tmp_path / folder).glob("*.nii.gz"))) == 1


def test_the_network_of_a_checkpoint_segments_as_the_trained_one(finished, loaded_cases):
    config = load_config(finished / "config.yaml")
    network, names = load_network(config, finished / "checkpoints" / "best.pt", torch.device("cpu"))
    assert isinstance(network.inner, BasicUNet) and len(names) == 4
    assert segment(network, loaded_cases[0], config.input.size, 2).shape == loaded_cases[0].shape


def test_a_checkpoint_of_other_arguments_is_named(finished):
    config = load_config(finished / "config.yaml")
    other = dataclasses.replace(config.model, arguments={"features": [4, 4, 6, 6, 8, 6]})
    with pytest.raises(InputError, match="another network than model.network monai.networks.nets.BasicUNet of its"):
        load_network(
            dataclasses.replace(config, model=other), finished / "checkpoints" / "best.pt", torch.device("cpu")
        )


@pytest.mark.parametrize("method", ["unimatch", "copy-paste", "supervised"])
def test_baselines_train_it_too(method, acdc_root, tmp_path):
    flags = [*FLAGS, f"--method={method}", "--baseline.iterations=2"]
    run(["--data", acdc_root, "--labeled=2", f"--output={tmp_path / 'run'}", *flags])
    assert (tmp_path / "run" / "summary.json").is_file()


def test_it_learns_the_phantom(tiny_phantom, tmp_path):
    flags = ["--method=supervised", "--labeled=2", "--split.proportions=[2,1,1]", "--baseline.iterations=40"]
    flags += ["--model.network=own_classes:Shallow", "--model.arguments={width: 8}", "--input.size=[64,64]"]
    flags += ["--model.window=32", "--evaluation.every=40", "--device=cpu", f"--output={tmp_path / 'run'}"]
    run(["--data", tiny_phantom, *flags])
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]
    losses = [float(line.split(",")[3]) for line in lines]
    assert len(losses) == 40 and sum(losses[-5:]) < 0.8 * sum(losses[:5])
