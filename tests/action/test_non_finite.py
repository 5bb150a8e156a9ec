"""A loss, a gradient or a weight that is not finite: the run stops with the step and the slices, nothing is saved."""

from types import SimpleNamespace

import pytest
import torch
from test_train import SHORT

from action import train
from action.config import EvaluationConfig, TrainConfig
from action.errors import InputError
from action.run_folder import load_checkpoint
from action.stages.anatomical_contrast import AnatomicalContrast
from action.stages.global_distillation import GlobalDistillation
from action.stages.supervised import Supervised
from action.trainer import Trainer


class Spoiled(torch.autograd.Function):
    """The identity with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("nan")


SPOIL = {"loss": lambda loss: loss * float("nan"), "gradient": Spoiled.apply, "overflow": lambda loss: loss * 1e39}


def spoil(monkeypatch, stage, at, how):
    losses = stage.losses

    def spoiled(self, network, batch, step, rng):
        result = losses(self, network, batch, step, rng)
        spoiled = {"loss": SPOIL[how](result.losses["loss"])} if step == at else {}
        return result._replace(losses=result.losses | spoiled)

    monkeypatch.setattr(stage, "losses", spoiled)


@pytest.mark.parametrize("how", SPOIL)
@pytest.mark.parametrize(
    ("stage", "method"),
    [(GlobalDistillation, "action"), (AnatomicalContrast, "action"), (Supervised, "supervised")],
)
def test_the_run_stops_with_step_and_slices(stage, method, how, acdc_root, tmp_path, monkeypatch):
    spoil(monkeypatch, stage, 1, how)
    output = tmp_path / "run"
    arguments = ["--data", str(acdc_root), f"--method={method}", "--labeled=2", f"--output={output}", *SHORT]
    with pytest.raises(
        InputError, match=rf"{stage.name}, step 2: .*not finite.* patient\d+_frame\d+ slice \d"
    ) as error:
        train.main([*arguments, "--evaluation.checkpoint_every=1"])
    assert "optimizer.lr" in str(error.value)
    state = load_checkpoint(output / "checkpoints" / "latest.pt", torch.device("cpu"))
    assert all(v.isfinite().all() for v in state["learner"].values() if isinstance(v, torch.Tensor))
    assert state["stage_step"] == 1


def test_weights_that_are_not_finite_are_never_saved(acdc_root, tmp_path, monkeypatch):
    validate = Trainer._validate

    def broken(self):
        values = validate(self)
        next(self.learner.network.student.parameters()).data[0] = float("inf")
        return values

    monkeypatch.setattr(Trainer, "_validate", broken)
    output = tmp_path / "run"
    with pytest.raises(InputError, match="weights that are not finite"):
        train.main(["--data", str(acdc_root), "--method=supervised", f"--output={output}", "--labeled=2", *SHORT])
    assert not list((output / "checkpoints").glob("*.pt"))


@pytest.mark.parametrize("dice", [[float("nan")], [0.5, float("nan")], [float("nan"), 0.5]])
def test_a_dice_that_is_no_number_is_never_the_best(dice):
    trainer = SimpleNamespace(
        config=TrainConfig(evaluation=EvaluationConfig(smoothing=0.0)), smoothed_dice=None, best_dice=-1.0
    )
    best = [Trainer._is_best(trainer, value) for value in dice]
    assert not any(chosen for chosen, value in zip(best, dice, strict=True) if value != value)
    assert trainer.best_dice == trainer.best_dice
