"""The folder of a run: fixed file names, checkpoints, and the log of every step."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from action.errors import InputError
from action.files import write_aside


class RunFolder:
    """Paths inside a run's folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.config = self.root / "config.yaml"
        self.split = self.root / "split.json"
        self.metrics = self.root / "metrics.csv"
        self.progress = self.root / "progress.png"
        self.overlays = self.root / "overlays.png"
        self.summary = self.root / "summary.json"
        self.predictions = self.root / "predictions"
        self.events = self.root / "events"
        self.latest = self.root / "checkpoints" / "latest.pt"
        self.best = self.root / "checkpoints" / "best.pt"

    def check_free(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse to touch an existing folder without being told to. Writes nothing.

        Raises:
            InputError: the folder exists and neither flag is given, or there is nothing to resume.
        """
        if resume and overwrite:
            raise InputError("--resume and --overwrite exclude each other: give one of them")
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"{self.root} is a file: choose another --output")
        exists = self.root.is_dir() and any(self.root.iterdir())
        if exists and not (resume or overwrite):
            raise InputError(
                f"{self.root} exists: continue it with --resume, replace it with --overwrite, or change --output"
            )
        if resume and not self.config.is_file():
            raise InputError(f"{self.root} has no {self.config.name}: nothing to resume, start it without --resume")
        if overwrite and exists and not self.config.is_file():
            raise InputError(f"{self.root} is not the folder of a run (no {self.config.name}): choose another --output")

    def create(self, *, overwrite: bool) -> None:
        """Make the folder, emptied first where ``overwrite`` says so."""
        if overwrite and self.root.is_dir():
            shutil.rmtree(self.root)
        self.latest.parent.mkdir(parents=True, exist_ok=True)


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint of tensors and plain values; an interruption leaves the previous one whole."""
    with write_aside(path) as aside:
        torch.save(dict(state), aside)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        InputError: the file is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: train the run first")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path} is not a readable checkpoint ({type(error).__name__}): train the run again"
        ) from error


class StepLog:
    """``metrics.csv`` and TensorBoard events, one row for every step.

    Args:
        run: the run's folder.
        columns: names of every value that a step may have; a step leaves those it lacks empty.
        step: rows up to this step are kept (a resumed run), later ones are dropped.
    """

    def __init__(self, run: RunFolder, columns: Sequence[str], step: int) -> None:
        self._columns = ["step", "stage", *columns]
        kept = _rows(run.metrics, step) if step else []
        with write_aside(run.metrics) as aside, aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(kept)
        self._file = run.metrics.open("a", newline="")
        self._writer = csv.DictWriter(self._file, self._columns)
        self._events = SummaryWriter(str(run.events), purge_step=step + 1 if step else None)

    def write(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Append one step."""
        self._writer.writerow({"step": step, "stage": stage, **{k: f"{v:.6g}" for k, v in values.items()}})
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name if name.startswith("val") else f"train/{name}", value, step)

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._events.close()


def _rows(path: Path, step: int) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["step"] and int(row["step"]) <= step]
