"""The loop: batches, optimiser, teacher, log, validation, checkpoints. It knows no loss by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from action.allocator import keep_freed_memory
from action.checkpoint import FORMAT, checked_state, without_unused
from action.config import RunConfig
from action.data.batches import step_generator
from action.data.identity import check_same_data
from action.data.volumes import LoadedCase
from action.errors import InputError
from action.figures import plot_progress
from action.inference import segment
from action.log import Loggers
from action.metrics import dice_scores, mean_scores
from action.model.learner import Learner
from action.model.network import Network
from action.progress import track
from action.ranks import ALONE, Ranks
from action.run_folder import RunFolder, StepLog, load_latest, save_checkpoint
from action.stages import Stage
from action.stages.base import StepResult, TrainingData
from action.update import Update

READ_EVERY = 20
"""Updates between two looks at their losses: to look at a number is to wait until the device has computed it."""


class Step(NamedTuple):
    """An update that has been asked for, and whose losses may not have been computed yet.

    Attributes:
        number: from 1, over all stages.
        stage_step: from 0.
        slices: names of those in its batches.
        lr: learning rate.
        losses: by name, means of those of its batches.
        norm: of the gradient.
    """

    number: int
    stage_step: int
    slices: list[str]
    lr: float
    losses: dict[str, Tensor]
    norm: Tensor


class Trainer:
    """Runs the stages one after the other; all of them share the network and the optimiser's state.

    Args:
        config: settings of the run.
        learner: the network and the stages, on the device that trains; a stage of zero iterations is left out.
        data: training slices.
        validation: cases by which the best checkpoint is chosen.
        class_names: including background.
        run: folder of the run.
        ranks: the processes that train; the first of them writes the files.
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
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.config, self.learner, self.data = config, learner, data
        stages = (stage for stage in learner.stages.values() if isinstance(stage, Stage))
        self.stages = [stage for stage in stages if stage.iterations > 0]
        self.validation, self.class_names, self.run = validation, tuple(class_names), run
        self.data_description = dict(data_description or {})
        self.device = next(learner.parameters()).device
        if self.device.type == "cpu":
            keep_freed_memory()
        self.update = Update(config, learner.trained(), self.device, ranks)
        if config.compile:
            for network in (learner.network.student, learner.network.teacher):
                network.compile()
        self.loggers: Loggers | None = None
        self.unread: list[Step] = []
        self.stage_index = 0
        self.stage_step = 0  # updates done in the current stage
        self.smoothed_dice: float | None = None  # moving average over the validations
        self.best_dice = -1.0  # the largest that it was

    @property
    def step(self) -> int:
        """Updates done in all stages."""
        return sum(stage.iterations for stage in self.stages[: self.stage_index]) + self.stage_step

    def fit(self, loggers: Loggers | None = None) -> None:
        """Train from wherever the state stands to the end of the last stage.

        Args:
            loggers: of the first process; ``None``: ``metrics.csv`` alone.
        """
        self.loggers = loggers
        learners = ["val_dice"]
        if any(stage.asks_teacher for stage in self.stages):
            learners.append("val_teacher_dice")
        scores = [name for learner in learners for name in (learner, *self._dice_names(learner))]
        losses = dict.fromkeys(name for stage in self.stages for name in stage.loss_names)
        log = StepLog(self.run, ["lr", *losses, *scores], self.step) if self.ranks.first else None
        try:
            while self.stage_index < len(self.stages):
                self._run_stage(self.stages[self.stage_index], log)
                self._keep_network()
                self.stage_index, self.stage_step = self.stage_index + 1, 0
                self.save_latest()
        finally:
            if log:
                log.close()

    def _run_stage(self, stage: Stage, log: StepLog | None) -> None:
        self.learner.train()
        settings = self.config.evaluation
        bar = track(
            range(self.stage_step, stage.iterations),
            f"{stage.name} ({self.stage_index + 1}/{len(self.stages)})",
            initial=self.stage_step,
            total=stage.iterations,
        )
        for step in bar:
            self.unread.append(self.train_step(stage, step))
            self.stage_step = step + 1
            last = self.stage_step == stage.iterations
            validates = stage.segments and (last or self.stage_step % settings.every == 0)
            saves = last or self.stage_step % settings.checkpoint_every == 0
            if not (validates or saves or len(self.unread) == READ_EVERY):
                continue
            *earlier, (number, values) = self._read(stage)
            self._write(log, stage, earlier)
            if validates:
                values |= self._validate()
                if self._is_best(values["val_dice"]):
                    self.save(self.run.best)
                if stage.asks_teacher:
                    values |= self._dice("val_teacher_dice", self.learner.network.teacher)
            self._write(log, stage, [(number, values)])
            bar.set_postfix({name: f"{values[name]:.3f}" for name in stage.loss_names}, refresh=False)
            if saves:
                if log:
                    log.flush()  # no checkpoint without the rows before it
                self.save_latest()
                if self.ranks.first:
                    plot_progress(self.run.metrics, self.run.progress)

    def train_step(self, stage: Stage, step: int) -> Step:
        """One update, of a batch or several. Every random choice follows from (seed, stage, step), dropout included."""
        rng = step_generator(self.config.seed, self.stage_index, step)
        torch.manual_seed(int(rng.integers(2**63)))
        number, lr = self.step + 1, self.update.learning_rate(step, stage.iterations)
        results: list[StepResult] = []
        slices: list[str] = []

        def losses() -> Iterator[Tensor]:
            for part in range(self.config.accumulate):
                batch = stage.batch(self.data, step * self.config.accumulate + part, rng)
                slices.extend([*self.data.labeled.drawn, *self.data.unlabeled.drawn])
                with self.update.autocast():
                    results.append(stage.losses(self.learner.network, batch, step, rng))
                yield results[-1].losses["loss"]

        norm = self.update(losses(), lr, nesterov=stage.nesterov)
        self.learner.update_teachers(self.step)
        for result in results:
            for push in result.to_push:
                push.bank.push(push.rows, push.labels)
        means = {name: torch.stack([r.losses[name].detach() for r in results]).mean(0) for name in results[0].losses}
        return Step(number, step, slices, lr, means, norm)

    def _write(self, log: StepLog | None, stage: Stage, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
        for number, values in rows:
            if log:
                log.write(number, stage.name, values)
            if self.loggers:
                tags = {name: name if name.startswith("val") else f"train/{name}" for name in values}
                self.loggers.log(number, {tags[name]: value for name, value in values.items()})

    def _read(self, stage: Stage) -> list[tuple[int, dict[str, float]]]:
        """Number and values of the steps since the last call, in one transfer from the device.

        Raises:
            InputError: a loss or a gradient was not finite; names the step, its losses and the slices of its batch.
        """
        steps, self.unread = self.unread, []
        numbers = torch.stack([torch.stack([*step.losses.values(), step.norm]).float() for step in steps]).tolist()
        rows = []
        for step, (*losses, norm) in zip(steps, numbers, strict=True):
            values = dict(zip(step.losses, losses, strict=True))
            if not self.update.is_sound(values["loss"], norm):
                shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
                raise InputError(
                    f"{stage.name}, step {step.stage_step + 1}: the loss or its gradient is not finite ({shown}; "
                    f"gradient norm {norm:.4g}) on the slices {', '.join(step.slices)}; look at them, or lower "
                    "optimizer.lr. The run was stopped, and its checkpoints are from before that step"
                )
            rows.append((step.number, {"lr": step.lr, **values}))
        self.update.check_scale()
        return rows

    def _validate(self) -> dict[str, float]:
        """Mean Dice of each class, and of all, over the validation cases; without a class that is in none of them.

        Raises:
            InputError: no validation case has any class, in its label or predicted.
        """
        found = self._dice("val_dice", self.learner.network.student)
        if not found:
            raise InputError("no validation case has a voxel of any class: there is no Dice to choose a checkpoint by")
        return found

    def _dice(self, name: str, network: Network) -> dict[str, float]:
        """``name`` and ``name_<class>``: the Dice of a network on the validation patients; changes nothing."""
        size, batch = self.config.input.size, self.config.evaluation.batch
        classes = len(self.class_names)

        def score(case: LoadedCase) -> np.ndarray:
            return dice_scores(segment(network, case, size, batch), case.required_truth, classes)

        by_class, mean = mean_scores(self.ranks.share_out(self.validation, score))
        scores = zip((name, *self._dice_names(name)), (mean, *by_class), strict=True)
        return {name: value for name, value in scores if value is not None}

    def _dice_names(self, name: str) -> list[str]:
        return [f"{name}_{class_name}" for class_name in self.class_names[1:]]

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
        self._save(path)

    def save_latest(self) -> None:
        """Write the checkpoint to resume from; the one before it is kept."""
        self._save(self.run.latest, self.run.previous)

    def _keep_network(self) -> None:
        """Keep the student's network of the end of a stage that another one follows: what the report compares."""
        if self.ranks.first and self.stage_index + 1 < len(self.stages):
            network = self.learner.network.student.state_dict(prefix="network.student.")
            state = {"format": FORMAT, "torch": str(torch.__version__), "learner": network}
            state |= {"channels": self.learner.network.student.in_channels, "class_names": list(self.class_names)}
            save_checkpoint(state, self.run.stage_ends[self.stages[self.stage_index].name])

    def _save(self, path: Path, previous: Path | None = None) -> None:
        state = self.state_dict()
        if self.ranks.first:
            save_checkpoint(state, path, previous)

    def resume(self) -> None:
        """Continue from the latest checkpoint, if the run has written one.

        Raises:
            InputError: a checkpoint that is damaged or of another model, or of other data.
        """
        latest = load_latest(self.run, self.device, repair=self.ranks.first)
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
            **self.update.state_dict(),
            "stage_index": self.stage_index,
            "stage_step": self.stage_step,
            "seed": self.config.seed,
            "smoothed_dice": self.smoothed_dice,
            "best_dice": self.best_dice,
            "channels": self.learner.network.student.in_channels,
            "class_names": list(self.class_names),
            "data": self.data_description,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.learner.load_state_dict(state["learner"])
        self.update.load_state_dict(state)
        self.stage_index, self.stage_step = state["stage_index"], state["stage_step"]
        self.smoothed_dice, self.best_dice = state["smoothed_dice"], state["best_dice"]
