"""The loop: batches, optimiser, teacher, log, validation, checkpoints. It knows no loss by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from action.checkpoint import FORMAT, checked_state, without_unused
from action.config import RunConfig
from action.data.batches import step_generator
from action.data.identity import check_same_data
from action.data.volumes import LoadedCase
from action.errors import InputError
from action.figures import plot_progress
from action.inference import segment
from action.metrics import dice_scores, mean_scores
from action.model.learner import Learner
from action.run_folder import RunFolder, StepLog, load_latest, save_checkpoint
from action.stages import Stage
from action.stages.base import TrainingData


class Trainer:
    """Runs the stages one after the other; all of them share the network and the optimiser's state.

    Args:
        config: settings of the run.
        learner: the network and the stages, on the device that trains; a stage of zero iterations is left out.
        data: training slices.
        validation: cases by which the best checkpoint is chosen.
        class_names: including background.
        run: folder of the run.
        data_description: of every case, by ``action.data.identity.describe``: a resumed run recognises its data.
    """

    def __init__(
        self,
        config: RunConfig,
        learner: Learner,
        data: TrainingData,
        validation: Sequence[LoadedCase],
        class_names: Sequence[str],
        run: RunFolder,
        data_description: Mapping[str, list[float]] | None = None,
    ) -> None:
        self.config, self.learner, self.data = config, learner, data
        stages = (stage for stage in learner.stages.values() if isinstance(stage, Stage))
        self.stages = [stage for stage in stages if stage.iterations > 0]
        self.validation, self.class_names, self.run = validation, tuple(class_names), run
        self.data_description = dict(data_description or {})
        self.device = next(learner.parameters()).device
        self.optimizer = torch.optim.SGD(
            learner.trained(),
            lr=config.optimizer.lr,
            momentum=config.optimizer.momentum,
            weight_decay=config.optimizer.weight_decay,
        )
        self.stage_index = 0
        self.stage_step = 0  # updates done in the current stage
        self.smoothed_dice: float | None = None  # moving average over the validations
        self.best_dice = -1.0  # the largest that it was

    @property
    def step(self) -> int:
        """Updates done in all stages."""
        return sum(stage.iterations for stage in self.stages[: self.stage_index]) + self.stage_step

    def fit(self) -> None:
        """Train from wherever the state stands to the end of the last stage."""
        scores = [f"val_dice_{name}" for name in self.class_names[1:]]
        losses = dict.fromkeys(name for stage in self.stages for name in stage.loss_names)
        log = StepLog(self.run, ["lr", *losses, "val_dice", *scores], self.step)
        try:
            while self.stage_index < len(self.stages):
                self._run_stage(self.stages[self.stage_index], log)
                self.stage_index, self.stage_step = self.stage_index + 1, 0
                self.save_latest()
        finally:
            log.close()

    def _run_stage(self, stage: Stage, log: StepLog) -> None:
        self.learner.train()
        for group in self.optimizer.param_groups:
            group["nesterov"] = stage.nesterov
        settings = self.config.evaluation
        bar = tqdm(
            range(self.stage_step, stage.iterations),
            initial=self.stage_step,
            total=stage.iterations,
            desc=f"{stage.name} ({self.stage_index + 1}/{len(self.stages)})",
            dynamic_ncols=True,
        )
        for step in bar:
            values = self._train_step(stage, step)
            self.stage_step = step + 1
            last = self.stage_step == stage.iterations
            if stage.segments and (last or self.stage_step % settings.every == 0):
                values |= self._validate()
                if self._is_best(values["val_dice"]):
                    self.save(self.run.best)
            log.write(self.step, stage.name, values)
            bar.set_postfix({name: f"{values[name]:.3f}" for name in stage.loss_names}, refresh=False)
            if last or self.stage_step % settings.checkpoint_every == 0:
                log.flush()  # no checkpoint without the rows before it
                self.save_latest()
                plot_progress(self.run.metrics, self.run.progress)

    def _train_step(self, stage: Stage, step: int) -> dict[str, float]:
        """One update. Every random choice follows from (seed, stage, step), dropout included."""
        rng = step_generator(self.config.seed, self.stage_index, step)
        torch.manual_seed(int(rng.integers(2**63)))
        settings = self.config.optimizer
        lr = settings.lr * (1 - step / stage.iterations) ** settings.power
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batch = {key: value.to(self.device) for key, value in stage.batch(self.data, step, rng).items()}
        losses, to_push = stage.losses(self.learner.network, batch, step, rng)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        self._check_step(stage, step, losses)
        self.optimizer.step()
        self.learner.update_teachers(self.step)
        for push in to_push:
            push.bank.push(push.rows, push.labels)
        return {"lr": lr, **{name: value.item() for name, value in losses.items()}}

    def _check_step(self, stage: Stage, step: int, losses: Mapping[str, Tensor]) -> None:
        """Stop before a loss or a gradient that is not finite reaches the weights.

        Raises:
            InputError: names the step, the losses and the slices of the batch.
        """
        gradients = [p.grad for p in self.learner.trained() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if bool(torch.stack([losses["loss"].detach(), norm]).isfinite().all()):
            return
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
        slices = ", ".join([*self.data.labeled.drawn, *self.data.unlabeled.drawn])
        raise InputError(
            f"{stage.name}, step {step + 1}: the loss or its gradient is not finite ({values}; gradient norm "
            f"{norm.item():.4g}) on the slices {slices}; look at them, or lower optimizer.lr. The run was stopped "
            f"before its weights changed"
        )

    def _validate(self) -> dict[str, float]:
        """Mean Dice of each class, and of all, over the validation cases; without a class that is in none of them.

        Raises:
            InputError: no validation case has any class, in its label or predicted.
        """
        size, batch = self.config.input.size, self.config.evaluation.batch
        classes = len(self.class_names)
        by_class, mean = mean_scores(
            [
                dice_scores(segment(self.learner.network.student, case, size, batch), case.required_truth, classes)
                for case in self.validation
            ]
        )
        if mean is None:
            raise InputError("no validation case has a voxel of any class: there is no Dice to choose a checkpoint by")
        names = [f"val_dice_{name}" for name in self.class_names[1:]]
        found = {name: value for name, value in zip(names, by_class, strict=True) if value is not None}
        return {"val_dice": mean, **found}

    def _is_best(self, dice: float) -> bool:
        weight = self.config.evaluation.smoothing
        before = dice if self.smoothed_dice is None else self.smoothed_dice
        self.smoothed_dice = weight * before + (1 - weight) * dice
        if not self.smoothed_dice > self.best_dice:  # nor is NaN better
            return False
        self.best_dice = self.smoothed_dice
        return True

    def save(self, path: Path) -> None:
        """Write a checkpoint: everything that the rest of the run depends on."""
        save_checkpoint(self.state_dict(), path)

    def save_latest(self) -> None:
        """Write the checkpoint to resume from; the one before it is kept."""
        save_checkpoint(self.state_dict(), self.run.latest, self.run.previous)

    def resume(self) -> None:
        """Continue from the latest checkpoint, if the run has written one.

        Raises:
            InputError: a checkpoint that is damaged or of another model, or of other data.
        """
        latest = load_latest(self.run, self.device)
        if latest is None:
            return
        state = checked_state(latest, self.run.latest)
        if state.get("format", 1) == 1:
            state = without_unused(state, self.learner.state_dict().keys(), len(list(self.learner.trained())))
        if (names := state["class_names"]) != list(self.class_names):
            raise InputError(
                f"the run has the classes {names}, the data now {list(self.class_names)}: bring them in line"
            )
        if "data" in state:
            check_same_data(state["data"], self.data_description)
        try:
            self.load_state_dict(state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.run.latest} is the checkpoint of another model or version ({type(error).__name__}): resume "
                "with the version of action that wrote it, or train the run again with --overwrite"
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """Learner (networks, heads, banks), optimiser, place in the run; the random state follows from the place.

        Raises:
            InputError: a weight or a statistic of the network is not finite: such a state is never saved.
        """
        values = [*self.learner.parameters(), *(b for b in self.learner.buffers() if b.is_floating_point())]
        if not bool(torch.stack([value.isfinite().all() for value in values]).all()):
            raise InputError(
                f"step {self.step}: the network has weights that are not finite, which are not saved; lower "
                "optimizer.lr and start again"
            )
        return {
            "format": FORMAT,
            "torch": str(torch.__version__),
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stage_index": self.stage_index,
            "stage_step": self.stage_step,
            "seed": self.config.seed,
            "smoothed_dice": self.smoothed_dice,
            "best_dice": self.best_dice,
            "class_names": list(self.class_names),
            "data": self.data_description,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.stage_index, self.stage_step = state["stage_index"], state["stage_step"]
        self.smoothed_dice, self.best_dice = state["smoothed_dice"], state["best_dice"]
