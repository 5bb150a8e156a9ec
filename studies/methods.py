"""What ACTION buys: ``python -m studies.methods [--data DIR] [--labeled [1,3,7]]``.

Trains the baselines, ACTION and the fully labelled upper bound with equal numbers of network updates, over several
numbers of labelled patients and several seeds, and writes a table and a figure. The figure of merit is the share of the
gap between labelled-only and fully labelled mean Dice that a method closes. Finished runs are kept, so an interrupted
study goes on where it stopped. Settings are chosen ``--on validation``; the test patients are for those that stand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt

from action.choices import METHODS
from action.cli import parse_config
from action.config import TrainConfig
from action.data.phantom import write_phantom
from action.errors import InputError
from action.experiment import PHANTOM, open_split, resolve
from action.figures import read_columns
from action.progress import track
from action.run_folder import RunFolder
from action.train import check_same
from tools.figure_style import save

from .command import run
from .plots import dice, write


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Args:
        title: as in the table.
        method: of ``action.train``.
        every_label: train with the labels of all training patients.
        left_out: stages without updates, which the last stage that is left takes over.
        overrides: further flags.
    """

    title: str
    method: str
    every_label: bool = False
    left_out: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    def flags(self, asked: TrainConfig) -> list[str]:
        """What it changes in the settings that all arms are asked for."""
        stages = METHODS["action"]
        updates = {stage: getattr(asked, stage).iterations for stage in self.left_out}
        flags = [f"--{stage}.iterations=0" for stage in updates]
        if updates:
            last = [stage for stage in stages if stage not in updates][-1]
            flags.append(f"--{last}.iterations={getattr(asked, last).iterations + sum(updates.values())}")
        return [*flags, *self.overrides]

    def folder(self, name: str, labeled: int, seed: int) -> str:
        """Of its run; with every label, one run serves all numbers of labelled patients."""
        return f"{name}-seed{seed}" if self.every_label else f"{name}-{labeled}-seed{seed}"


LABELED_ONLY, FULL = "labeled-only", "fully-labeled"
ARMS = {
    LABELED_ONLY: Arm("labelled only", "supervised"),
    "mean-teacher": Arm("Mean Teacher", "mean-teacher"),
    "pseudo-labels": Arm("pseudo-labels, CutMix", "pseudo-labels"),
    "copy-paste": Arm("bidirectional copy-paste", "copy-paste"),
    "unimatch": Arm("UniMatch", "unimatch"),
    "action": Arm("ACTION", "action"),
    FULL: Arm("fully labelled", "supervised", every_label=True),
}
# What each part contributes: a stage or a loss left out, and what ACTION++ adds.
ABLATION = {
    "without-global": Arm("ACTION without stage 1", "action", left_out=("global_distillation",)),
    "without-stage-2": Arm("ACTION without stage 2", "action", left_out=("local_distillation",)),
    "without-stage-3": Arm("ACTION without stage 3", "action", left_out=("anatomical_contrast",)),
    "without-local": Arm("ACTION without L_local", "action", overrides=("--local_distillation.weight=0",)),
    "hard-targets": Arm(
        "ACTION, hard targets",
        "action",
        overrides=("--global_distillation.teacher_temp=0.001", "--local_distillation.teacher_temp=0.001"),
    ),
    "without-unsupervised": Arm(
        "ACTION without L_unsup", "action", overrides=("--anatomical_contrast.unsupervised_weight=0",)
    ),
    "without-contrast": Arm("ACTION without L_anco", "action", overrides=("--anatomical_contrast.contrast_weight=0",)),
    "batch-negatives": Arm(
        "ACTION, negatives from the batch", "action", overrides=("--anatomical_contrast.negatives=batch",)
    ),
    "hardest-negatives": Arm(
        "ACTION, hardest negatives", "action", overrides=("--anatomical_contrast.selection=hardest",)
    ),
    "action++": Arm("ACTION++", "action", overrides=("--anatomical_contrast.variant=action++",)),
}


@dataclass(frozen=True)
class Score:
    """What a run reached on some patients.

    Args:
        classes: Dice by class; None: no patient has the class.
        mean: Dice.
        asd: mean average surface distance; None: not measured.
        misses: volumes in which a class was not found; None: not counted.
        unit: of the distance.
    """

    classes: dict[str, float | None]
    mean: float
    asd: float | None = None
    misses: int | None = None
    unit: str = "mm"


def train(flags: Sequence[str], run: RunFolder, threads: int) -> None:
    """One run in a process of its own, which goes on where it stopped."""
    command = [sys.executable, "-m", "action.train", *flags]
    if run.config.is_file():
        command.append("--resume")
    log = run.root.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        result = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    if result.returncode:
        raise InputError(f"{' '.join(command)} failed, see {log}")


def study(
    data: Path,
    labeled: Sequence[int],
    seeds: Sequence[int],
    arms: Sequence[str],
    output: Path,
    flags: Sequence[str],
    jobs: int,
    threads: int = 1,
) -> dict[int, dict[str, list[RunFolder]]]:
    """Train every arm with every number of labelled patients and every seed, ``jobs`` at a time with ``threads`` each.

    Returns:
        Number of labelled patients -> arm name -> finished runs, in the order of the seeds.

    Raises:
        InputError: a run that is there already has other settings, or one failed.
    """
    flags = [f"--data={data}", *flags]
    asked = parse_config(flags)
    _, split = open_split(parse_config([*flags, "--labeled=1", "--method=supervised"]))
    every = ",".join((*split.labeled, *split.unlabeled))
    runs: dict[int, dict[str, list[RunFolder]]] = {count: {name: [] for name in arms} for count in labeled}
    todo: dict[Path, list[str]] = {}
    for seed, count, name in product(seeds, labeled, arms):
        arm = (ARMS | ABLATION)[name]
        run = RunFolder(output / arm.folder(name, count, seed))
        own = [
            *flags,
            f"--method={arm.method}",
            f"--labeled_patients=[{every}]" if arm.every_label else f"--labeled={count}",
            f"--seed={seed}",
            f"--output={run.root}",
            *arm.flags(asked),
        ]
        runs[count][name].append(run)
        if run.summary.is_file():
            check_same(resolve(parse_config(own)), run)
        else:
            todo[run.root] = own
    with ThreadPoolExecutor(jobs) as pool:
        steps = pool.map(lambda root: train(todo[root], RunFolder(root), threads), todo)
        list(track(steps, "study", "run", total=len(todo)))
    return runs


def on_test(run: RunFolder) -> Score:
    """Scores of a finished run on the test patients."""
    summary = json.loads(run.summary.read_text())
    mean = summary["mean"]
    classes = {name: scores["dice"] for name, scores in summary["classes"].items()}
    return Score(classes, mean["dice"], mean["asd"], mean["misses"], summary["unit"])


def on_validation(run: RunFolder) -> Score:
    """Scores of a finished run's last weights on the validation patients."""
    _, _, columns = read_columns(run.metrics)
    last = {name: values[np.isfinite(values)][-1] for name, values in columns.items() if name.startswith("val_dice")}
    mean = last.pop("val_dice")
    return Score({name.removeprefix("val_dice_"): float(dice) for name, dice in last.items()}, float(mean))


def gap_closed(scores: Mapping[str, Sequence[Score]], name: str) -> float | None:
    """Share of the gap between labelled-only and fully labelled Dice (means over seeds) that an arm closes."""
    if LABELED_ONLY not in scores or FULL not in scores or name in (LABELED_ONLY, FULL):
        return None
    low, high, value = (np.mean([score.mean for score in scores[arm]]) for arm in (LABELED_ONLY, FULL, name))
    return float((value - low) / (high - low)) if high != low else None


def table(scores: Mapping[int, Mapping[str, Sequence[Score]]]) -> str:
    """Markdown: Dice in % per class and mean (± standard deviation over seeds), gap closed; on test ASD and misses."""
    first = next(iter(next(iter(scores.values())).values()))[0]
    classes = list(first.classes)
    distances = [f"ASD {first.unit}", "misses"] if first.misses is not None else []
    head = ["labelled", "", *classes, "mean Dice %", *distances, "gap closed"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for count, arms in scores.items():
        for name, seeds in arms.items():
            arm = (ARMS | ABLATION)[name]
            if arm.every_label and count != list(scores)[-1]:
                continue
            closed = gap_closed(arms, name)
            cells = [
                "all" if arm.every_label else str(count),
                arm.title,
                *(_percent([score.classes.get(c) for score in seeds]) for c in classes),
                _percent([score.mean for score in seeds]),
            ]
            if distances:
                asd = [score.asd for score in seeds if score.asd is not None]
                cells += [f"{np.mean(asd):.2f}" if asd else "n/a", str(sum(score.misses or 0 for score in seeds))]
            lines.append(f"| {' | '.join([*cells, '' if closed is None else f'{100 * closed:.0f} %'])} |")
    return "\n".join(lines)


def _percent(values: Sequence[float | None]) -> str:
    there = 100 * np.array([value for value in values if value is not None])
    return f"{there.mean():.1f} ± {there.std():.1f}" if len(there) else "n/a"


def write_dice(scores: Mapping[int, Mapping[str, Sequence[Score]]], seeds: Sequence[int], path: Path) -> None:
    """The table of the figure: Dice in % by class and mean, empty where no patient has the class."""
    rows = []
    for count, by_arm in scores.items():
        for name, by_seed in by_arm.items():
            for seed, score in zip(seeds, by_seed, strict=True):
                for class_name, value in (*score.classes.items(), ("mean", score.mean)):
                    percent = "" if value is None else f"{100 * value:.2f}"
                    rows.append((count, (ARMS | ABLATION)[name].title, seed, class_name, percent))
    write(path, ("labelled", "method", "seed", "class", "dice"), rows)


ArmName = Literal[tuple(ARMS | ABLATION)]


def compare(
    data: str | None = None,
    labeled: Sequence[PositiveInt] = (1,),
    seeds: Sequence[NonNegativeInt] = (0, 1, 2),
    arms: Sequence[ArmName] = tuple(ARMS),
    on: Literal["test", "validation"] = "test",
    output: str | None = None,
    jobs: PositiveInt | None = None,
    threads: PositiveInt = 1,
    flags: Sequence[str] = (),
) -> None:
    """Train every arm with every number of labelled patients and every seed, write the tables and the figure.

    Args:
        data: data folder; none: the phantom.
        labeled: numbers of labelled patients, e.g. [1,3,7].
        seeds: e.g. [0,1,2].
        arms: rows of the table.
        on: whose scores are shown; settings are chosen on validation patients.
        output: folder; none: results/study-<data>.
        jobs: runs at a time; none: one for every so many cores.
        threads: of a run; one does the least work in all.
        flags: for every action.train; also what stands after --.

    Raises:
        InputError: nothing to train.
    """
    for name, values in (("labeled", labeled), ("seeds", seeds), ("arms", arms)):
        if not values:
            raise InputError(f"--{name} is empty: name at least one, or leave it out")
    folder = Path(data) if data else write_phantom(PHANTOM)
    results_folder = Path(output or f"results/study-{folder.resolve().name}")
    runs = study(
        folder, labeled, seeds, arms, results_folder, flags, jobs or max(1, (os.cpu_count() or 1) // threads), threads
    )
    read = on_test if on == "test" else on_validation
    scores = {
        count: {name: [read(run) for run in folders] for name, folders in by_arm.items()}
        for count, by_arm in runs.items()
    }
    text = table(scores)
    (results_folder / f"{on}.md").write_text(text + "\n")
    values = results_folder / f"{on}.csv"
    write_dice(scores, seeds, values)
    save(partial(dice, values, f"{on} Dice, %"), results_folder / on)
    print(text)


if __name__ == "__main__":
    run(compare)
