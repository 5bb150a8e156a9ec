"""What ACTION buys: ``python -m studies.methods [--data DIR]``.

Trains the baselines, ACTION and the fully labelled upper bound with equal numbers of network updates, over several
seeds, and writes a table and a figure. The figure of merit is the share of the gap between labelled-only and fully
labelled mean test Dice that a method closes. Finished runs are kept, so an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse import auto_cli
from jsonargparse.typing import NonNegativeInt, PositiveInt
from matplotlib.figure import Figure
from tqdm import tqdm

from action.choices import METHODS
from action.cli import Parser, parse_config, run
from action.config import TrainConfig
from action.data.phantom import write_phantom
from action.errors import InputError
from action.experiment import PHANTOM, open_split, resolve
from action.run_folder import RunFolder
from action.train import check_same


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


LABELED_ONLY, FULL = "labeled-only", "fully-labeled"
ARMS = {
    LABELED_ONLY: Arm("labelled only", "supervised"),
    "mean-teacher": Arm("Mean Teacher", "mean-teacher"),
    "pseudo-labels": Arm(
        "pseudo-labels, CutMix",
        "action",
        left_out=("global_distillation", "local_distillation"),
        overrides=("--anatomical_contrast.contrast_weight=0",),
    ),
    "action": Arm("ACTION", "action"),
    FULL: Arm("fully labelled", "supervised", every_label=True),
}
# What each part contributes: a stage or a loss left out.
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
}


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
    data: Path, labeled: int, seeds: Sequence[int], arms: Sequence[str], output: Path, flags: Sequence[str], jobs: int
) -> dict:
    """Train every arm with every seed, ``jobs`` at a time.

    Returns:
        Arm name -> list of run summaries, in the order of the seeds.

    Raises:
        InputError: a run that is there already has other settings, or one failed.
    """
    flags = [f"--data={data}", *flags]
    asked = parse_config(flags)
    _, split = open_split(parse_config([*flags, "--labeled=1", "--method=supervised"]))
    every = ",".join((*split.labeled, *split.unlabeled))
    runs: dict[str, list[RunFolder]] = {name: [] for name in arms}
    todo = []
    for seed in seeds:
        for name in arms:
            arm, run = (ARMS | ABLATION)[name], RunFolder(output / f"{name}-seed{seed}")
            own = [
                *flags,
                f"--method={arm.method}",
                f"--labeled={labeled}",
                *([f"--labeled_patients=[{every}]"] if arm.every_label else []),
                f"--seed={seed}",
                f"--output={run.root}",
                *arm.flags(asked),
            ]
            runs[name].append(run)
            if run.summary.is_file():
                check_same(resolve(parse_config(own)), run)
            else:
                todo.append((own, run))
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        list(tqdm(pool.map(lambda item: train(*item, threads), todo), total=len(todo), desc="study", unit="run"))
    return {name: [json.loads(run.summary.read_text()) for run in folders] for name, folders in runs.items()}


def gap_closed(results: dict[str, list[dict]], name: str, of=lambda summary: summary["mean"]["dice"]) -> float | None:
    """Share of the gap between labelled-only and fully labelled Dice (means over seeds) that an arm closes."""
    if LABELED_ONLY not in results or FULL not in results:
        return None
    low, high, value = (np.mean([of(s) for s in results[arm]]) for arm in (LABELED_ONLY, FULL, name))
    return float((value - low) / (high - low)) if high != low else None


def table(results: dict[str, list[dict]]) -> str:
    """Markdown: Dice in % per class and mean (± standard deviation over seeds), ASD, misses, gap closed."""
    classes = list(next(iter(results.values()))[0]["classes"])
    head = ["", *classes, "mean Dice %", "ASD mm", "misses", "gap closed"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, summaries in results.items():
        dice = {c: [100 * d for s in summaries if (d := s["classes"][c]["dice"]) is not None] for c in classes}
        mean = 100 * np.array([s["mean"]["dice"] for s in summaries])
        asd = [s["mean"]["asd_mm"] for s in summaries if s["mean"]["asd_mm"] is not None]
        misses = sum(s["mean"]["misses"] for s in summaries)
        closed = gap_closed(results, name)
        cells = [
            (ARMS | ABLATION)[name].title,
            *(f"{np.mean(values):.1f} ± {np.std(values):.1f}" if values else "n/a" for values in dice.values()),
            f"{mean.mean():.1f} ± {mean.std():.1f}",
            f"{np.mean(asd):.2f}" if asd else "n/a",
            str(misses),
            "" if closed is None or name in (LABELED_ONLY, FULL) else f"{100 * closed:.0f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: dict[str, list[dict]], title: str, path: Path) -> None:
    """Bars of mean Dice by class, a point for every seed."""
    classes = [*next(iter(results.values()))[0]["classes"], "mean"]
    figure = Figure(figsize=(1.6 + 1.7 * len(classes), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(results)
    for i, (name, summaries) in enumerate(results.items()):
        rows = [[*(c["dice"] for c in s["classes"].values()), s["mean"]["dice"]] for s in summaries]
        values = 100 * np.ma.masked_invalid(np.array(rows, float))  # masked: a class that no test case has
        x = np.arange(len(classes)) + (i - (len(results) - 1) / 2) * width
        axes.bar(
            x,
            values.mean(axis=0).filled(np.nan),
            width * 0.92,
            label=(ARMS | ABLATION)[name].title,
            color=f"C{i}",
            alpha=0.75,
        )
        axes.plot(np.broadcast_to(x, values.shape).ravel(), values.ravel(), "k.", markersize=4)
    every = (s["classes"][c]["dice"] for group in results.values() for s in group for c in classes[:-1])
    lowest = min(dice for dice in every if dice is not None)
    axes.set(xticks=range(len(classes)), xticklabels=classes, ylabel="test Dice, %", title=title)
    axes.set_ylim(max(0, 10 * np.floor(10 * lowest - 1)), 100)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=150)


ArmName = Literal[tuple(ARMS | ABLATION)]


def compare(
    data: str | None = None,
    labeled: PositiveInt = 1,
    seeds: Sequence[NonNegativeInt] = (0, 1, 2),
    arms: Sequence[ArmName] = tuple(ARMS),
    output: str | None = None,
    jobs: PositiveInt | None = None,
    flags: Sequence[str] = (),
) -> None:
    """Train every arm with every seed, write the table and the figure.

    Args:
        data: data folder; none: the phantom.
        labeled: labelled patients.
        seeds: e.g. [0,1,2].
        arms: rows of the table.
        output: folder; none: results/study-<data>.
        jobs: runs at a time; none: one a core.
        flags: for every action.train; also what stands after --.

    Raises:
        InputError: nothing to train.
    """
    for name, values in (("seeds", seeds), ("arms", arms)):
        if not values:
            raise InputError(f"--{name} is empty: name at least one, or leave it out")
    folder = Path(data) if data else write_phantom(PHANTOM)
    results_folder = Path(output or f"results/study-{folder.resolve().name}")
    results = study(folder, labeled, seeds, arms, results_folder, flags, jobs or os.cpu_count() or 1)
    text = table(results)
    title = f"{folder.resolve().name}, {labeled} labelled patient{'s' * (labeled > 1)}"
    (results_folder / "table.md").write_text(text + "\n")
    plot(results, title, results_folder / "dice.png")
    print(text)


def main(argv: list[str]) -> None:
    own, flags = argv, []
    if "--" in argv:
        place = argv.index("--")
        own, flags = argv[:place], [f"--flags={json.dumps(argv[place + 1 :])}"]
    auto_cli(compare, args=[*own, *flags], parser_class=Parser)


if __name__ == "__main__":
    run(main)
