"""Where the time of a training step goes: its own network passes and optimiser, and what comes on top."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from action.config import RunConfig
from action.data.batches import SlicePool, step_generator
from action.data.nifti import Volume
from action.data.volumes import LoadedCase
from action.run_folder import RunFolder
from action.stages import make_learner
from action.stages.anatomical_contrast import AnatomicalContrast, sample_pixels
from action.stages.base import TrainingData
from action.trainer import Trainer

from .measure import Times, quantiles
from .rates import wait

STEP = "whole step"
SLICES = 24  # of a patient; larger than the patch by a quarter, as real ones are


def random_case(name: str, size: tuple[int, int], classes: int) -> LoadedCase:
    """Noise with labels in blocks."""
    rng = np.random.default_rng(len(name))
    shape = (SLICES, *(5 * extent // 4 for extent in size))
    image = rng.random(shape, np.float32).astype(np.float16)[:, None]
    label = rng.integers(classes, size=(SLICES, 5, 5), dtype=np.uint8)
    label = label.repeat(-(-shape[1] // 5), 1).repeat(-(-shape[2] // 5), 2)
    label = np.ascontiguousarray(label[:, : shape[1], : shape[2]])
    volume = Volume(np.empty((0, 0, 0), np.float32), np.eye(4), None, (1.0, 1.0, 1.0), Path(name))
    box = slice(0, shape[1]), slice(0, shape[2])
    return LoadedCase(name, name, image, label, None, (1.0, 1.0, 1.0), volume, shape, box)


def make_trainer(config: RunConfig, classes: int, device: str) -> Trainer:
    """A trainer on random slices, which has neither validation cases nor a run folder."""
    torch.manual_seed(0)
    learner = make_learner(config, classes).to(device).train()
    pools = [
        SlicePool([random_case(name, config.input.size, classes)], labels=labels, seed=0, device=device)
        for name, labels in (("labeled", True), ("unlabeled", False))
    ]
    return Trainer(config, learner, TrainingData(*pools), [], [str(c) for c in range(classes)], RunFolder("unused"))


def step_parts(config: RunConfig, classes: int, device: str, rounds: int) -> dict[str, Times]:
    """Seconds of a stage-3 step as the trainer takes it, and of its parts by themselves, in turn.

    Args:
        config: settings.
        classes: number of classes.
        device: cpu or cuda.
        rounds: measured rounds, after two that are not.
    """
    trainer = make_trainer(config, classes, device)
    learner = trainer.learner
    stage = learner.stages[AnatomicalContrast.name]
    assert isinstance(stage, AnatomicalContrast)
    trainer.stage_index = trainer.stages.index(stage)
    network, done = learner.network, 0
    batch = stage.batch(trainer.data, 0, step_generator(0, 0, 0))
    labeled = len(batch["label"])
    student_input = torch.cat([batch["strong"], batch["weak"][labeled:]])
    with torch.no_grad():
        features = [feature.requires_grad_() for feature in network.student(student_input).features]
    everywhere = torch.zeros_like(batch["weak_label"][:, 0], dtype=torch.int64)
    pixels, _ = sample_pixels(everywhere, 1, classes * config.anatomical_contrast.queries, step_generator(0, 0, 0))

    def whole() -> None:
        nonlocal done
        trainer.train_step(stage, done)
        done += 1

    def data() -> None:
        stage.batch(trainer.data, done, step_generator(0, 0, done))

    def teacher() -> None:
        with torch.no_grad(), trainer.update.autocast():
            network.teacher(batch["weak"])

    def forward() -> Tensor:
        with trainer.update.autocast():
            loss: Tensor = network.student(student_input).logits.square().mean()
        return loss

    def student() -> None:
        forward().backward()

    def heads() -> None:
        """Representations of as many pixels as a step draws, and the gradient of the student's."""
        with torch.no_grad(), trainer.update.autocast():
            stage.represented(stage.representation.teacher, features, pixels)
        with trainer.update.autocast():
            stage.represented(stage.representation.student, features, pixels).square().mean().backward()

    def optimizer() -> None:
        trainer.update.optimizer.step()

    def averages() -> None:
        learner.update_teachers(done)

    programs: dict[str, Callable[[], None]] = {
        STEP: whole,
        "teacher forward": teacher,
        "student forward and backward": student,
        "representation heads": heads,
        "optimiser": optimizer,
        "teacher's average": averages,
        "batch and its augmentation": data,
    }
    spans: dict[str, list[float]] = {name: [] for name in programs}
    for counted in range(-2, rounds):
        for name, program in programs.items():
            wait(device)
            start = time.perf_counter()
            program()
            wait(device)
            if counted >= 0:
                spans[name].append(time.perf_counter() - start)
    return {name: quantiles(values) for name, values in spans.items()}


def parts_table(parts: dict[str, Times]) -> str:
    """Markdown: milliseconds and shares of the whole step; what no part accounts for is losses, mixing, contrast."""
    whole = parts[STEP].median
    rest = whole - sum(times.median for name, times in parts.items() if name != STEP)
    seconds = {name: times.median for name, times in parts.items()} | {"losses, pseudo-labels, contrast": rest}
    lines = ["| part of a step | ms | share |", "|---|---|---|"]
    lines += [f"| {name} | {1e3 * value:.1f} | {100 * value / whole:.0f} % |" for name, value in seconds.items()]
    return "\n".join(lines)
