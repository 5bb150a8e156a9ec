"""The folder of a run: fixed file names, checkpoints, and the log of every step."""

from __future__ import annotations

import csv
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from action.choices import METHODS
from action.errors import InputError
from action.files import final_name, flush, flush_folder, write_aside


class RunFolder:
    """Paths inside a run's folder. A file that a run writes beside these must be added to ``files``."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.config = self.root / "config.yaml"
        self.split = self.root / "split.json"
        self.fingerprint = self.root / "fingerprint.json"
        self.metrics = self.root / "metrics.csv"
        self.progress = self.root / "progress.png"
        self.overlays = self.root / "overlays.png"
        self.summary = self.root / "summary.json"
        self.predictions = self.root / "predictions"
        self.events = self.root / "events"
        self.checkpoints = self.root / "checkpoints"
        self.latest = self.checkpoints / "latest.pt"
        self.previous = self.checkpoints / "previous.pt"
        self.best = self.checkpoints / "best.pt"
        self.stage_ends = {stage: self.checkpoints / f"{stage}.pt" for stages in METHODS.values() for stage in stages}
        self.environment = self.root / "environment.json"
        self.report = self.root / "report.html"
        self.loggers = self.root / "loggers.json"
        self.lock = self.root / ".action.lock"
        self.job = self.root / ".action.job"

    @property
    def files(self) -> list[Path]:
        """Files of fixed names, the configuration last: a folder is a run's as long as it is there."""
        return [
            *(self.job, self.latest, self.previous, self.best, *self.stage_ends.values()),
            *(self.metrics, self.progress, self.overlays, self.summary, self.report, self.environment),
            self.loggers,
            *(self.fingerprint, self.split, self.config),
        ]

    def partials(self) -> list[Path]:
        """Files written aside by processes that were killed, or that still run, unless the folder is locked."""
        named = {path.name for path in self.files}
        found = [path for folder in (self.root, self.checkpoints) for path in folder.glob(".partial-*")]
        found = [path for path in found if final_name(path.name) in named]
        found += [path for path in self.predictions.glob(".partial-*.nii.gz") if final_name(path.name)]
        return [path for path in found if path.is_file() and not path.is_symlink()]

    def is_empty(self) -> bool:
        """Whether nothing is there, or no more than a start that was killed before it wrote its configuration."""
        if not self.root.is_dir():
            return True
        begun = {self.lock, *self.partials()}
        if self.checkpoints.is_dir() and not self.checkpoints.is_symlink() and not any(self.checkpoints.iterdir()):
            begun.add(self.checkpoints)
        return set(self.root.iterdir()) <= begun

    def check_free(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse to touch an existing folder without being told to. Writes nothing.

        Raises:
            InputError: the folder exists and neither flag is given, or there is nothing to resume.
        """
        if resume and overwrite:
            raise InputError("--resume and --overwrite exclude each other: give one of them")
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"{self.root} is a file: choose another --output")
        if resume and not self.config.is_file():
            raise InputError(f"{self.root} has no {self.config.name}: nothing to resume, start it without --resume")
        if not self.is_empty() and not (resume or overwrite):
            raise InputError(
                f"{self.root} exists: continue it with --resume, replace it with --overwrite, or change --output"
            )

    def updates(self) -> int | None:
        """Updates that the log has; ``None`` without a log."""
        with suppress(OSError), self.metrics.open(newline="", encoding="utf-8") as file:
            return max((int(row["step"]) for row in csv.DictReader(file) if (row["step"] or "").isdigit()), default=0)
        return None

    def begun_by(self, jobs: Iterable[str]) -> bool:
        """Whether one of these programs has begun the run, and not ended it."""
        with suppress(OSError):
            return not set(jobs).isdisjoint(self.job.read_text(encoding="utf-8").splitlines())
        return False

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Make the folder where it is missing, and keep every other process out of it until the block ends.

        The operating system releases the lock when the process ends, so a killed process blocks nobody. A folder that
        is made here and still empty at the end is removed again.

        Raises:
            InputError: another process trains or evaluates this run.
        """
        missing = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        lock = FileLock(self.lock, timeout=0.5)
        try:
            self._acquire(lock)
        except Timeout:
            raise InputError(
                f"{self.root} is in use by another process{self._owner()}: wait until it has ended, or choose another "
                "--output"
            ) from None
        try:
            self.lock.write_text(f"{os.getpid()}\n", encoding="utf-8")
            yield
        finally:
            self.lock.unlink(missing_ok=True)  # before its release: nobody else can have made another one
            lock.release()
            with suppress(OSError):  # not empty
                for folder in missing:
                    folder.rmdir()

    def _acquire(self, lock: FileLock) -> None:
        for attempts_left in (2, 1, 0):
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
                return
            except FileNotFoundError:  # the process that made the folder has just removed it
                if not attempts_left:
                    raise

    def _owner(self) -> str:
        with suppress(OSError):
            if (pid := self.lock.read_text(encoding="utf-8").strip()).isdigit():
                return f" (pid {pid})"
        return ""

    def remove_partials(self) -> None:
        """Clean up after processes that were killed while they wrote. Only for the folder's owner."""
        for path in self.partials():
            path.unlink()


def save_checkpoint(state: Mapping[str, Any], path: Path, previous: Path | None = None) -> None:
    """Write a checkpoint of tensors and plain values; an interruption leaves a whole file.

    Args:
        state: what is saved.
        path: of the checkpoint.
        previous: where the replaced checkpoint is kept; ``None``: it is dropped.
    """
    with write_aside(path) as aside:
        _save(dict(state), aside)
        if previous is not None and path.exists():
            flush(aside)  # complete on disk before the old one moves
            os.replace(path, previous)  # killed after this line, the run resumes from the previous checkpoint


def _save(state: dict[str, Any], path: Path) -> None:
    """``torch.save`` that raises the operating system's error, such as a full disk, instead of its own about it."""
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        InputError: the file is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: train the run first")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not verify the checksums that the entries have
            if damaged := archive.testzip():
                raise ValueError(f"checksum of {damaged}")
        state = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"a {type(state).__name__}, no state")
    except Exception as error:
        raise InputError(
            f"{path} is not a readable checkpoint ({type(error).__name__}: {_first_line(error)}): train the run again"
        ) from error
    return state


def load_latest(run: RunFolder, device: torch.device, repair: bool = True) -> dict[str, Any] | None:
    """The state to resume from: the latest checkpoint, or the one before it where the latest is damaged.

    A damaged one is reported and given up: the next save would otherwise put it in the good one's place. Without
    ``repair`` it is an error: of several processes one alone moves files.

    Returns:
        ``None`` if the run stopped before it had written one.

    Raises:
        InputError: what is there is damaged.
    """
    if not run.latest.is_file():
        return load_checkpoint(run.previous, device) if run.previous.is_file() else None
    try:
        return load_checkpoint(run.latest, device)
    except InputError as error:
        damaged = str(error).removesuffix(": train the run again")
        if not (repair and run.previous.is_file()):
            raise
    try:
        state = load_checkpoint(run.previous, device)
    except InputError:
        raise InputError(f"{damaged}, nor is {run.previous}: train the run again with --overwrite") from None
    os.replace(run.previous, run.latest)
    flush_folder(run.checkpoints)
    print(f"warning: {damaged}; going on from the one before it")
    return state


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


class StepLog:
    """``metrics.csv``, one row for every step.

    Args:
        run: the run's folder.
        columns: names of every value that a step may have; a step leaves those it lacks empty.
        step: rows up to this step are kept (a resumed run), later ones are dropped.
    """

    def __init__(self, run: RunFolder, columns: Sequence[str], step: int) -> None:
        self._columns = ["step", "stage", *columns]
        kept = _rows(run.metrics, step) if step else []
        with write_aside(run.metrics) as aside, aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(kept)
        self._file = run.metrics.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, self._columns)

    def write(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Append one step."""
        self._writer.writerow({"step": step, "stage": stage, **{k: f"{v:.6g}" for k, v in values.items()}})
        self._file.flush()

    def flush(self) -> None:
        """Wait until all rows are on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close."""
        self._file.close()


def _rows(path: Path, step: int) -> list[dict[str, str]]:
    """Whole rows up to ``step``: the last one may have been cut short."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
    return [row for row in rows if row["step"].isdecimal() and int(row["step"]) <= step]
