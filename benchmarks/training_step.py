"""Time and peak memory of a whole training step of stage 3: ``python -m benchmarks.training_step [--device cuda]``.

Our step evaluates the representation head at the sampled pixels alone and reads the negatives where they lie. The plain
step is the published formulation: the head at every pixel, and for each class the negatives gathered as a tensor
query x negative x feature. Both take the same samples and compute the same losses. A second table shows what the
parts of our step, as the trainer takes it, take by themselves.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor

from action.cli import parse_config
from action.config import AnatomicalContrastConfig, ModelConfig, RunConfig, TrainConfig, fill_in
from action.data.batches import step_generator
from action.errors import InputError
from action.model.heads import Pixels, RepresentationHead
from action.model.teacher import StudentTeacher
from action.stages import make_learner
from action.stages.anatomical_contrast import AnatomicalContrast
from action.stages.base import StageParts
from action_kernels import use_backend

from .measure import peak_meter, quantiles
from .rates import wait
from .step_parts import parts_table, step_parts
from .table import append, describe

CLASSES = 4
QUERIES = 256  # of a class
CHANNELS = (16, 32, 64, 128, 256)


def published(
    size: int = 256, features: int = 512, channels: Sequence[int] = CHANNELS, precision: str = "fp32"
) -> RunConfig:
    """The published settings, without dropout (both programs compute the same), with ``size`` x ``size`` pixels."""
    settings = TrainConfig(
        precision=precision,
        model=ModelConfig(channels=tuple(channels), embedding=features, window=size // 4, stride=size // 8, pooled=8),
        anatomical_contrast=AnatomicalContrastConfig(
            labeled=4,
            unlabeled=4,
            pseudo_label_threshold=0.0,
            pseudo_label_dice=False,
            pseudo_label_alignment=False,
            ramp_up=0.0,
            queries=QUERIES,
            keys=QUERIES,
            negatives_per_query=512,
        ),
    )
    return fill_in(settings, data="", output="", spacing=(1.0, 1.0), size=(size, size))


def random_batch(config: RunConfig) -> dict[str, Tensor]:
    """Smooth random anatomy of four classes and noisy images of it, as the stage takes them."""
    settings, (height, width) = config.anatomical_contrast, config.input.size

    def view(count: int) -> tuple[Tensor, Tensor]:
        field = F.interpolate(torch.rand(count, 1, 6, 6), (height, width), mode="bicubic")
        label = ((field - 0.2) / 0.6 * CLASSES).floor().clamp(0, CLASSES - 1)
        return label / CLASSES + 0.1 * torch.randn_like(label), label

    weak, weak_label = view(settings.labeled)
    strong, label = view(settings.labeled)
    return {
        "weak": torch.cat([weak, view(settings.unlabeled)[0]]),
        "weak_label": weak_label,
        "strong": strong,
        "label": label,
    }


class DenseRepresentationHead(RepresentationHead):
    """The head at every pixel, of which the sampled ones are taken."""

    def forward(self, features: Sequence[Tensor], pixels: Pixels) -> Tensor:
        # In PyTorch's own layout, as published, and not in the network's channels-last one.
        return self.dense([feature.contiguous() for feature in features])[pixels.image, :, pixels.y, pixels.x]


class GatheredContrast(AnatomicalContrast):
    """The stage with InfoNCE by cosines, and a gather of the negatives for each class of queries."""

    def info_nce(self, query: Tensor, positive: Tensor, bank: Tensor, index: Tensor, temp: float) -> Tensor:
        losses = []
        for q, p, i in zip(*(x.split(QUERIES) for x in (query, positive, index)), strict=True):
            keys = torch.cat([p[:, None], bank[i.clamp_min(0)]], dim=1)  # [Q, 1 + k, D], the positive first
            logits = F.cosine_similarity(q[:, None], keys, dim=2) / temp
            logits[:, 1:].masked_fill_(i < 0, -torch.inf)
            losses.append(-logits.log_softmax(dim=1)[:, 0])
        return torch.cat(losses)


class Step:
    """A stage-3 training with a full pixel bank; a call is one update, and returns its losses.

    Args:
        config: settings.
        device: cpu or cuda.
        plain: the published formulation on plain PyTorch, instead of ours.
    """

    def __init__(self, config: RunConfig, device: str, plain: bool) -> None:
        torch.manual_seed(0)
        self.plain, self.done = plain, 0
        self.learner = make_learner(config, CLASSES)
        self.stage = self.learner.stages[AnatomicalContrast.name]
        bank = self.stage.pixel_bank
        bank.push(F.normalize(torch.randn(bank.capacity, bank.dim)), torch.randint(CLASSES, (bank.capacity,)))
        self.batch = {key: value.to(device) for key, value in random_batch(config).items()}
        if plain:
            plain_stage = GatheredContrast(
                StageParts(config, CLASSES, config.model.channels[::-1], self.stage.augmentation, earlier={})
            )
            head = DenseRepresentationHead(config.model.channels[::-1], config.model.embedding)
            plain_stage.representation = StudentTeacher(head)
            plain_stage.load_state_dict(self.stage.state_dict())
            self.stage = self.learner.stages[AnatomicalContrast.name] = plain_stage
        self.learner.to(device).train()
        settings = config.optimizer
        self.optimizer = torch.optim.SGD(
            self.learner.trained(),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=self.stage.nesterov,
        )

    def __call__(self) -> dict[str, Tensor]:
        torch.manual_seed(self.done)  # dropout
        rng = step_generator(0, 0, self.done)
        with use_backend("reference") if self.plain else nullcontext():
            losses, to_push = self.stage.losses(self.learner.network, self.batch, self.done, rng)
            self.optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
        self.optimizer.step()
        self.learner.update_teachers(self.done)
        for push in to_push:
            push.bank.push(push.rows, push.labels)
        self.done += 1
        return {name: value.detach() for name, value in losses.items()}


def from_file(path: Path) -> RunConfig:
    """The settings of a configuration file.

    Raises:
        InputError: the file leaves the size of a slice to the data.
    """
    settings = parse_config([f"--config={path}"])
    spacing, size = settings.input.spacing, settings.input.size
    if spacing is None or size is None:
        raise InputError(f"{path}: give it an input.spacing and an input.size, as no data are read here")
    return fill_in(settings, data="", output="", spacing=spacing, size=size)


def main(
    device: str = "cpu",
    settings: Path | None = None,
    size: int = 256,
    features: int = 512,
    channels: tuple[int, ...] = CHANNELS,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    rounds: int = 2,
    output: Path = Path("results/benchmarks"),
) -> None:
    """Measure both steps in turn, print a Markdown table, add to ``training_step.csv``.

    Args:
        device: cpu or cuda.
        settings: a configuration of action.train: only the parts of its step are measured, on random slices.
        size: pixels of an image's side; the batch has 4 labelled and 4 unlabelled images.
        features: of the representation.
        channels: of the U-Net's levels.
        precision: of the second table; the first compares in fp32.
        rounds: timed steps of each, after one untimed whose memory is measured as the second's.
        output: folder of the table.
    """
    machine = describe(device)
    print(", ".join(str(value) for value in machine.values()))
    if settings is not None:
        print(parts_table(step_parts(from_file(settings), CLASSES, device, max(3, rounds))))
        return
    config = published(size, features, channels)
    steps = {name: Step(config, device, plain=name == "plain") for name in ("fused", "plain")}
    spans: dict[str, list[float]] = {name: [] for name in steps}
    peaks: dict[str, float] = {}
    for counted in range(-1, rounds):
        for name, step in steps.items():
            meter = peak_meter(device)
            start = time.perf_counter()
            step()
            wait(device)
            if counted >= 0:
                spans[name].append(time.perf_counter() - start)
                peaks[name] = meter.bytes() / 2**20
    print("| step | s | 20 % | 80 % | peak MiB |\n|---|---|---|---|---|")
    rows = []
    for name in steps:
        seconds = quantiles(spans[name])
        print(f"| {name} | {seconds.median:.2f} | {seconds.low:.2f} | {seconds.high:.2f} | {peaks[name]:.0f} |")
        row = {"step": name, "size": size, "features": features, "seconds": round(seconds.median, 4)}
        row |= {"seconds_q20": round(seconds.low, 4), "seconds_q80": round(seconds.high, 4)}
        rows.append({**row, "peak_mib": round(peaks[name], 1), **machine})
    append(output / "training_step.csv", rows)
    print(parts_table(step_parts(published(size, features, channels, precision), CLASSES, device, max(3, rounds))))


if __name__ == "__main__":
    auto_cli(main)
