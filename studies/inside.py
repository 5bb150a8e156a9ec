"""What a training does inside: ``python -m studies.inside --output DIR [-- flags of action.train]``.

Trains a run and looks into it every so many updates: how good the pseudo-labels are, how far the classes lie apart in
the network's features, how soft the targets of distillation are. It reads labels of patients who count as unlabelled,
of which the training sees nothing; the test patients are not looked at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse.typing import PositiveInt
from monai.transforms import ResizeWithPadOrCrop
from torch import Tensor

from action.cli import choose_device, parse_config
from action.data.volumes import LoadedCase, load_cases
from action.errors import InputError
from action.experiment import load_data, make_trainer, resolve
from action.inference import segment
from action.metrics import dice_scores, mean_scores
from action.model.heads import Pixels
from action.run_folder import RunFolder
from action.stages.anatomical_contrast import AnatomicalContrast, sample_pixels
from action.stages.base import Stage
from action.stages.global_distillation import GlobalDistillation
from action.stages.local_distillation import LocalDistillation
from action.trainer import Trainer

from .command import run
from .plots import write

COLUMNS = ("step", "stage", "measure", "class", "value")
PIXELS = 50  # of every class in a slice


class Finding(NamedTuple):
    """A number that was found.

    Args:
        measure: what it is, see ``look``.
        class_name: of which class; "mean" over all, or "" where classes do not matter.
        value: the number.
    """

    measure: str
    class_name: str
    value: float


class Shown(NamedTuple):
    """Slices of the network's size."""

    image: Tensor  # [B, channels, H, W]
    label: Tensor  # [B, H, W] uint8


def slices(cases: Sequence[LoadedCase], size: tuple[int, int], device: torch.device) -> Shown:
    """The slices at a quarter, half and three quarters of each heart, cropped or padded about their centre."""
    fit = ResizeWithPadOrCrop(size)
    images, labels = [], []
    for case in cases:
        assert case.label is not None
        there = np.flatnonzero(np.asarray(case.label).any(axis=(1, 2)))
        if not len(there):
            continue
        for z in np.unique(np.quantile(there, (0.25, 0.5, 0.75)).round().astype(int)):
            images.append(np.asarray(fit(case.image[z].astype(np.float32))))
            labels.append(np.asarray(fit(case.label[z : z + 1]))[0])
    return Shown(*(torch.from_numpy(np.stack(x)).to(device) for x in (images, labels)))


@torch.no_grad()
def features(trainer: Trainer, stage: Stage, shown: Shown) -> tuple[dict[str, Tensor], Tensor]:
    """Rows of sampled pixels in the teacher's decoder maps and, with stage 3, its representation; and their classes."""
    network, classes = trainer.learner.network.teacher, len(trainer.class_names)
    rows: dict[str, list[Tensor]] = {}
    found = []
    rng = np.random.default_rng(0)  # the same pixels every time
    for image, label in zip(shown.image.split(1), shown.label.split(1), strict=True):
        maps = network(image).features
        pixels, drawn = sample_pixels(label.long(), classes, PIXELS, rng)
        found.append(drawn)
        joined = torch.cat([F.interpolate(x, label.shape[1:], mode="bilinear", align_corners=True) for x in maps], 1)
        rows.setdefault("decoder", []).append(joined[0, :, pixels.y, pixels.x].T)
        if isinstance(stage, AnatomicalContrast):
            rows.setdefault("representation", []).append(_represent(stage, maps, pixels))
    return {name: torch.cat(parts) for name, parts in rows.items()}, torch.cat(found)


def _represent(stage: AnatomicalContrast, maps: Sequence[Tensor], pixels: Pixels) -> Tensor:
    rows: Tensor = stage.representation.teacher(maps, pixels)
    return rows


def separation(
    labeled: Tensor, labels: Tensor, others: Tensor, truth: Tensor, classes: int
) -> tuple[list[float], float]:
    """How far the classes lie apart in a space of features, whose axes are brought to the same spread first.

    Args:
        labeled: [P, C] features of the labelled patients' pixels.
        labels: [P] their classes.
        others: [Q, C] features of other patients' pixels.
        truth: [Q] their classes.
        classes: number of them.

    Returns:
        For each class, the share of the others' pixels whose nearest class mean (cosine) of the labelled patients is
        that of their own class; and the share of the others' variance that lies between the classes, each of which
        counts alike.
    """
    mean, spread = labeled.mean(0), labeled.std(0).clamp_min(1e-6)
    labeled, others = (F.normalize((x - mean) / spread, dim=1) for x in (labeled, others))
    means = torch.stack([labeled[labels == c].mean(0) for c in range(classes)]).nan_to_num()  # a class may be absent
    nearest = (others @ F.normalize(means, dim=1).T).argmax(1)
    recall = [float((nearest[truth == c] == c).double().mean()) for c in range(classes)]
    centres = torch.stack([others[truth == c].mean(0) for c in range(classes)])
    within = torch.stack([(others[truth == c] - centres[c]).square().sum(1).mean() for c in range(classes)]).mean()
    between = (centres - centres.mean(0)).square().sum(1).mean()
    return recall, float(between / (between + within))


def softness(similarity: Tensor, temp: float) -> float:
    """Bank rows over which a target is spread, exp(entropy), mean over targets [..., K] of cosine similarities."""
    log = (similarity / temp).log_softmax(-1)
    return float((-(log.exp() * log).sum(-1)).exp().mean())


@torch.no_grad()
def targets(trainer: Trainer, stage: Stage, shown: Shown) -> Iterator[Finding]:
    """How soft the targets of the distillation stages are, of the slices ``shown``."""
    network = trainer.learner.network.teacher
    if isinstance(stage, GlobalDistillation):
        embedding, bank = stage.head.teacher(network.encode(shown.image)[-1]), stage.bank
        temp, name = trainer.config.global_distillation.teacher_temp, "rows of a slice's target"
    elif isinstance(stage, LocalDistillation):
        embedding, bank = stage.head.teacher(network(shown.image).logits), stage.bank
        temp, name = trainer.config.local_distillation.teacher_temp, "rows of a window's target"
    else:
        return
    similarity = F.normalize(embedding, dim=-1) @ F.normalize(bank.rows, dim=-1).transpose(-1, -2)
    yield Finding(name, "", softness(similarity, temp))


def look(trainer: Trainer, stage: Stage, known: Shown, others: Shown, cases: Sequence[LoadedCase]) -> Iterator[Finding]:
    """Everything that is measured.

    Args:
        trainer: between two updates.
        stage: that was trained last.
        known: slices of the labelled patients.
        others: slices of patients whose labels the training does not see.
        cases: their volumes.
    """
    names, config = trainer.class_names, trainer.config
    if stage.segments:
        teacher, size, batch = trainer.learner.network.teacher, config.input.size, config.evaluation.batch
        scores = [dice_scores(segment(teacher, case, size, batch), case.required_truth, len(names)) for case in cases]
        by_class, mean = mean_scores(scores)
        for name, score in zip((*names[1:], "mean"), (*by_class, mean), strict=True):
            yield Finding("Dice of pseudo-labels", name, float("nan") if score is None else score)
    (ours, labels), (theirs, truth) = (features(trainer, stage, shown) for shown in (known, others))
    for space, rows in ours.items():
        recall, share = separation(rows, labels, theirs[space], truth, len(names))
        for name, value in zip((*names, "mean"), (*recall, float(np.mean(recall))), strict=True):
            yield Finding(f"nearest class mean, {space}", name, value)
        yield Finding(f"variance between classes, {space}", "", share)
    yield from targets(trainer, stage, others)


class WatchedTrainer(Trainer):
    """Looks into the training whenever it saves."""

    known: Shown
    others: Shown
    cases: Sequence[LoadedCase]
    rows: list[tuple[object, ...]]

    def save_latest(self) -> None:
        super().save_latest()
        stage = self.stages[min(self.stage_index, len(self.stages) - 1)]
        if self.stage_step in (0, stage.iterations) and self.rows and self.rows[-1][0] == self.step:
            return  # the end of a stage is saved twice
        self.learner.eval()
        for measure, name, value in look(self, stage, self.known, self.others, self.cases):
            self.rows.append((self.step, stage.name, measure, name, f"{value:.4f}"))
        self.learner.train()
        write(self.run.root / "inside.csv", COLUMNS, self.rows)


def watch(
    output: Path = Path("results/inside"),
    every: PositiveInt = 250,
    patients: PositiveInt = 12,
    flags: Sequence[str] = (),
) -> None:
    """Train a run and write ``inside.csv`` into its folder.

    Args:
        output: folder of the run.
        every: updates between two looks.
        patients: without labels, who are looked at.
        flags: for action.train; also what stands after --.

    Raises:
        InputError: there is a run already, or no patient counts as unlabelled.
    """
    config = resolve(parse_config([*flags, f"--output={output}"]))
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, checkpoint_every=every))
    folder = RunFolder(config.output)
    folder.check_free(resume=False, overwrite=False)
    device = choose_device(config.device)
    with folder.owned():
        data = load_data(config)
        if not data.split.unlabeled:
            raise InputError("every training patient is labelled: ask for fewer with --labeled")
        known = {case.patient for case in data.dataset.cases if case.label}
        hidden = [patient for patient in data.split.unlabeled if patient in known][:patients]
        if not hidden:
            raise InputError("no unlabelled patient has a label to compare with: add some, which the training ignores")
        cases = [case for case in data.dataset.cases if case.patient in hidden and case.label]
        trainer = make_trainer(config, data, folder, device, kind=WatchedTrainer)
        assert isinstance(trainer, WatchedTrainer)
        trainer.rows = []
        trainer.cases = load_cases(cases, len(data.dataset.class_names), config.input, data.fingerprint)
        trainer.known = slices(data.labeled, config.input.size, device)
        trainer.others = slices(trainer.cases, config.input.size, device)
        folder.checkpoints.mkdir(exist_ok=True)
        trainer.fit()


if __name__ == "__main__":
    run(watch)
