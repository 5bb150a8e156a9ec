"""Looking through a data folder: what belongs to the user's data there, and what other programs have left."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

FOREIGN = frozenset({"__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found", "#recycle", "@eaDir"})
"""Folders of operating systems and file servers: resource forks, trash, thumbnails."""
_RUN_PARTS = frozenset({"predictions", "checkpoints", "events"})


def entries(folder: Path) -> list[Path]:
    """What is in a folder, by name; without hidden files and folders, ``FOREIGN`` ones and what a run writes.

    Hidden names begin with a dot: among them are macOS's ``._*`` files, trash folders and half written files. Of a
    run's folder its predictions, checkpoints and events are left out. Links whose target is missing are in.

    Raises:
        OSError: the folder cannot be listed.
    """
    passed = FOREIGN | _RUN_PARTS if _is_run(folder) else FOREIGN
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in passed)


def walk(root: Path, problems: list[str]) -> Iterator[Path]:
    """All files below ``root`` that ``entries`` lets through, in a fixed order, those in linked folders included.

    No folder is entered twice, nor one that holds ``root``, so that links cannot lead around in circles.

    Args:
        root: the data folder.
        problems: gets a line for every link whose target is missing and every folder that cannot be listed.
    """
    outside = {Path(os.path.realpath(root)), *Path(os.path.realpath(root)).parents}
    waiting, entered = [root], set(outside)
    while waiting:
        folder = waiting.pop()
        try:
            found = entries(folder)
        except OSError as error:
            problems.append(f"{folder} cannot be listed ({error.strerror}): allow it, or move it out of {root}")
            continue
        folders = []
        for path in found:
            if (problem := dangling(path)) is not None:
                problems.append(problem)
            elif not path.is_dir():
                yield path
            elif (real := Path(os.path.realpath(path))) not in entered:
                entered.add(real)
                folders.append(path)
        waiting += reversed(folders)


def nifti_stem(name: str) -> str | None:
    """The name of a NIfTI file without its suffix; ``None`` for other names."""
    match = re.fullmatch(r"(.+)\.nii(\.gz)?", name, re.IGNORECASE | re.DOTALL)
    return match[1] if match else None


def nifti_files(folder: Path, problems: list[str]) -> dict[str, Path]:
    """The NIfTI files in a folder by their names without the suffix; none where the folder is missing.

    Args:
        folder: is not searched below.
        problems: gets a line for every link whose target is missing, folder in the place of a file, and name that is
            there with both suffixes.
    """
    found: dict[str, Path] = {}
    if (problem := dangling(folder)) is not None:
        problems.append(problem)
    for path in entries(folder) if folder.is_dir() else ():
        if (stem := nifti_stem(path.name)) is None:
            continue
        if (problem := dangling(path)) is not None:
            problems.append(problem)
        elif not path.is_file():
            problems.append(f"{path} is not a file: put the file itself in its place")
        elif stem in found:
            problems.append(f"{found[stem]} and {path} are both there: remove one")
        else:
            found[stem] = path
    return found


def dangling(path: Path) -> str | None:
    """A sentence about a link whose target is missing or out of reach; ``None`` about everything else."""
    if path.is_symlink() and not os.path.exists(path):
        return f"{path} is a link to {os.readlink(path)}, which does not exist: restore its target or remove the link"
    return None


def same_file(first: Path, second: Path) -> bool:
    """Whether two paths lead to one file, over links of any kind."""
    return os.path.realpath(first) == os.path.realpath(second) or os.path.samefile(first, second)


def _is_run(folder: Path) -> bool:
    """Whether a folder looks like that of a training run."""
    return (folder / "config.yaml").is_file() and any(
        (folder / name).exists() for name in ("checkpoints", "split.json", "metrics.csv", "summary.json")
    )
