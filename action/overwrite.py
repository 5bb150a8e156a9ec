"""Replacing a run: its own files go, by name, and nothing else ever does."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import yaml

from action.data.dataset import open_dataset
from action.data.split import load_split
from action.errors import InputError
from action.files import final_name
from action.run_folder import RunFolder

_SETTINGS = {"data", "format", "method", "labeled", "seed", "output", "split", "model", "optimizer", "evaluation"}
"""Settings that every resolved configuration has; one written by hand seldom has them all."""


def check_replaceable(folder: RunFolder, inputs: Iterable[Path]) -> None:
    """Refuse to replace what is not a run or holds more than one. Writes nothing.

    Args:
        folder: of the run that is to be replaced.
        inputs: files and folders that the new run reads.

    Raises:
        InputError: says what is in the way.
    """
    if folder.is_empty():
        return
    root = folder.root.resolve()
    if Path.cwd().is_relative_to(root):
        raise InputError(
            f"{folder.root} holds the working directory, which --overwrite would empty: choose another --output"
        )
    for path in inputs:
        if path.resolve().is_relative_to(root):
            raise InputError(f"{folder.root} holds {path}, which the new run reads: choose another --output")
    if not _is_run(folder):
        raise InputError(
            f"{folder.root} is not the folder of a run ({folder.config.name} is missing or not a run's): choose "
            "another --output"
        )
    if foreign := sorted(_foreign(folder)):
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise InputError(
            f"{folder.root} holds files that the run did not write, {foreign[0]}{more}: move them away or choose "
            "another --output"
        )


def clear(folder: RunFolder) -> None:
    """Remove a run's files but its configuration, by which a half-emptied folder is still recognised as a run's."""
    for path in [*_own_files(folder, folder.predictions), *_own_files(folder, folder.events), *folder.partials()]:
        path.unlink(missing_ok=True)  # a partial file may be listed twice
    for path in folder.files[:-1]:
        path.unlink(missing_ok=True)
    for path in (folder.predictions, folder.events):
        with suppress(OSError):  # not there, or somebody has just put a file there
            path.rmdir()


def _is_run(folder: RunFolder) -> bool:
    """Whether the configuration is a resolved one, with what a run writes next beside it, or made for this folder."""
    try:
        settings = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    if not isinstance(settings, dict) or not settings.keys() >= _SETTINGS:
        return False
    if isinstance(settings["output"], str) and Path(settings["output"]).resolve() == folder.root.resolve():
        return True
    with suppress(InputError):
        load_split(folder.split)
        return True
    return any(path.is_file() for path in (folder.latest, folder.previous, folder.best))


def _foreign(folder: RunFolder) -> list[Path]:
    own = {folder.lock, *folder.files, *folder.partials()}
    found: list[Path] = []
    for path in folder.root.iterdir():
        if path in (folder.checkpoints, folder.predictions, folder.events) and path.is_dir() and not path.is_symlink():
            own.update(_own_files(folder, path))
            found += path.iterdir()
        else:
            found.append(path)
    return [path for path in found if path not in own or path.is_symlink() or not path.is_file()]


def _own_files(folder: RunFolder, inside: Path) -> list[Path]:
    """Files that a run has written into one of its folders, by their names."""
    if not inside.is_dir() or inside.is_symlink():
        return []
    paths = [path for path in inside.iterdir() if path.is_file() and not path.is_symlink()]
    if inside == folder.events:
        return [path for path in paths if path.name.startswith("events.out.tfevents.")]
    if inside == folder.predictions:
        names = {f"{name}.nii.gz" for name in _evaluated(folder)}
        return [path for path in paths if (final_name(path.name) or path.name) in names]
    return [path for path in paths if path in folder.files]


def _evaluated(folder: RunFolder) -> set[str]:
    """Cases of which the run has written predictions, or may have."""
    names: set[str] = set()
    with suppress(OSError, ValueError, KeyError, TypeError):
        names.update(json.loads(folder.summary.read_text(encoding="utf-8"))["cases"])
    with suppress(OSError, ValueError, KeyError, TypeError, InputError):  # killed before its summary
        settings = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
        test = load_split(folder.split).test
        cases = open_dataset(settings["data"], settings["format"]).cases
        names.update(case.name for case in cases if case.patient in test)
    return names
