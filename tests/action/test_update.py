"""One update: plain SGD's numbers, half precision with loss scaling, and what cannot succeed."""

from __future__ import annotations

import pytest
import torch
from test_train import SHORT, run
from torch import nn

from action.cli import parse_config
from action.config import RunConfig, TrainConfig, fill_in
from action.errors import InputError
from action.run_folder import load_checkpoint
from action.update import SMALLEST_SCALE, Update

CPU = torch.device("cpu")


def settings(*flags: str) -> RunConfig:
    asked: TrainConfig = parse_config(list(flags))
    return fill_in(asked, "data", "output", (1.5, 1.5), (32, 32))


def test_it_is_sgd_also_for_parameters_that_join_later():
    ours, theirs = ([nn.Parameter(torch.linspace(-1, 1, 5)), nn.Parameter(torch.ones(3))] for _ in range(2))
    update = Update(settings("--optimizer.weight_decay=0.01"), ours, CPU)
    plain = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True, foreach=False)

    def loss(p: list[nn.Parameter], step: int) -> torch.Tensor:
        early = (p[0] ** 4).sum()
        return early + (p[0][:3] * p[1].sin()).sum() if step > 2 else early

    for step in range(6):
        for group in plain.param_groups:
            group["nesterov"] = step != 1
        plain.zero_grad()
        expected = loss(theirs, step)
        expected.backward()
        expected_norm = torch.stack([p.grad.norm() for p in theirs if p.grad is not None]).norm()
        plain.step()
        norm = update([loss(ours, step)], 0.1, nesterov=step != 1)
        torch.testing.assert_close(norm, expected_norm)
        if step == 2:  # as a run that is resumed before the second parameter has moved
            state = update.state_dict()
            state["optimizer"]["state"].pop(1)
            update.load_state_dict(state)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_it_follows_the_mean_of_several_losses_each_asked_for_after_the_one_before():
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))

    def losses():
        yield (ours**3).sum()
        torch.testing.assert_close(ours.grad, ours.detach() ** 2)  # a third of 3 x^2
        yield ours.sum()
        yield (ours**2).sum()

    norm = Update(settings("--accumulate=3"), [ours], CPU)(losses(), 0.1, nesterov=False)
    gradient = (3 * theirs**2 + 1 + 2 * theirs).detach() / 3
    torch.testing.assert_close(norm, gradient.norm())
    torch.testing.assert_close(ours.detach(), theirs.detach() * (1 - 0.1 * 1e-4) - 0.1 * gradient)


def test_the_learning_rate_falls_to_zero():
    update = Update(settings("--optimizer.lr=0.5", "--optimizer.power=2"), [nn.Parameter(torch.ones(1))], CPU)
    assert [update.learning_rate(step, 10) for step in (0, 5, 10)] == [0.5, 0.125, 0.0]


def test_a_gradient_that_overflows_fp16_changes_nothing_and_the_next_loss_is_scaled_less():
    weight = nn.Parameter(torch.ones(3))
    update = Update(settings("--precision=fp16"), [weight], CPU)
    scale = update.scaler.get_scale()
    norm = update([weight.sum() * float("inf")], 0.1, nesterov=True)
    assert not norm.isfinite() and update.is_sound(1.0, norm.item())
    assert not update.is_sound(float("nan"), 1.0)
    assert torch.equal(weight, torch.ones(3)) and update.scaler.get_scale() == scale / 2
    norm = update([weight.sum()], 0.1, nesterov=False)
    assert norm.item() == pytest.approx(3**0.5) and torch.allclose(weight, torch.full((3,), 1 - 0.1 * (1 + 1e-4)))


def test_fp16_gives_up_where_every_gradient_overflows():
    weight = nn.Parameter(torch.ones(1))
    update = Update(settings("--precision=fp16"), [weight], CPU)
    update.check_scale()
    while update.scaler.get_scale() >= SMALLEST_SCALE:
        update([weight.sum() * float("nan")], 0.1, nesterov=True)
    with pytest.raises(InputError, match="precision fp16: .* use bf16 or fp32"):
        update.check_scale()


@pytest.fixture(scope="module")
def runs(acdc_root, tmp_path_factory):
    """The same short training in every precision."""
    folder = tmp_path_factory.mktemp("precision")
    for precision in ("fp32", "bf16", "fp16"):
        run(["--data", acdc_root, "--labeled=2", f"--output={folder / precision}", f"--precision={precision}", *SHORT])
    return folder


def losses(folder) -> list[dict[str, float]]:
    lines = (folder / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    return [{name: float(row[name]) for name in ("loss", "supervised", "contrast") if row[name]} for row in rows]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_computes_the_same_losses_but_for_rounding(runs, precision):
    exact, half = losses(runs / "fp32"), losses(runs / precision)
    assert exact != half
    supervised = [(a["supervised"], b["supervised"]) for a, b in zip(exact, half, strict=True) if "supervised" in a]
    assert len(supervised) > 3
    assert all(b == pytest.approx(a, rel=0.05) for a, b in supervised)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_stay_in_single_precision(runs, precision):
    state = load_checkpoint(runs / precision / "checkpoints" / "latest.pt", CPU)
    assert {v.dtype for v in state["learner"].values() if v.is_floating_point()} == {torch.float32}
    assert bool(state["scaler"]) == (precision == "fp16")


def test_a_resumed_run_in_fp16_scales_the_loss_as_before(runs, acdc_root, tmp_path, monkeypatch):
    from action.trainer import Trainer

    step, output = Trainer.train_step, tmp_path / "run"

    def interrupted(self, stage, number):
        if self.step >= 6:
            raise KeyboardInterrupt
        return step(self, stage, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_step", interrupted)
        run(["--data", acdc_root, "--labeled=2", f"--output={output}", "--precision=fp16", *SHORT])
    run(["--resume", f"--output={output}"])
    assert (output / "metrics.csv").read_text() == (runs / "fp16" / "metrics.csv").read_text()


@pytest.mark.slow  # the compiler takes minutes
def test_compiled_networks_compute_the_same(runs, acdc_root, tmp_path):
    output = tmp_path / "compiled"
    run(["--data", acdc_root, "--labeled=2", f"--output={output}", "--compile=true", *SHORT])
    for a, b in zip(losses(runs / "fp32"), losses(output), strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-5)
    names = [
        load_checkpoint(folder / "checkpoints" / "latest.pt", CPU)["learner"].keys()
        for folder in (output, runs / "fp32")
    ]
    assert names[0] == names[1]
