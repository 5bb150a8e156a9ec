"""Writing that neither an interruption nor a power cut can spoil: aside, flushed to disk, renamed over the old file."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from action.errors import InputError

_PARTIAL = re.compile(r"\.partial-\d+-(?P<name>.+)", re.DOTALL)
ABANDONED = 3600.0
"""Seconds without a change after which what was written aside has no writer any more."""


@contextmanager
def write_aside(path: Path, *, flushed: bool = True) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it replaces ``path`` only if the block ends without an exception.

    The suffix is kept, since writers choose their format by it. When the block has ended, ``path`` has the new content
    on disk and not only in the system's memory.

    ``flushed``: without, a power cut may still damage the file: for what its reader checks and can make anew.
    """
    path = Path(path)
    aside = aside_of(path)
    try:
        yield aside
        if flushed:
            flush(aside)
        os.replace(aside, path)
        if flushed:
            flush_folder(path.parent)
    except OSError as error:
        if error.errno and not error.filename:  # the system does not name the file
            error.filename = str(path)
        raise
    finally:
        aside.unlink(missing_ok=True)


def aside_of(path: Path) -> Path:
    """Where this process writes a file or a folder before it gets its name."""
    return path.with_name(f".partial-{os.getpid()}-{path.name}")


def final_name(name: str) -> str | None:
    """The name that a file written aside would have got; ``None`` for other names."""
    match = _PARTIAL.fullmatch(name)
    return match["name"] if match else None


def remove_abandoned(folder: Path, ours: Callable[[str], bool]) -> None:
    """Remove the files and folders that processes which were killed long ago have left half-written in a folder.

    Args:
        folder: where they lie; it need not exist.
        ours: whether a file of this final name would be the caller's.
    """
    with suppress(OSError):  # another process may be faster, or the folder not ours to write to
        for path in list(folder.glob(".partial-*")):
            name = final_name(path.name)
            if name is None or not ours(name) or path.is_symlink():
                continue
            if time.time() - max(part.stat().st_mtime for part in (path, *path.rglob("*"))) <= ABANDONED:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def flush(path: Path) -> None:
    """Wait until the file's content is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk, where the file system can do that."""
    with suppress(OSError):
        flush(path)


def check_writable(folder: Path, name: str, target: Path | None = None) -> None:
    """Refuse a folder in which no file can be made, before there is anything to be lost. It leaves nothing behind.

    Args:
        folder: to write to; where it is missing, it is to be made in the nearest one above that is there.
        name: of the argument that it comes from, such as ``--output``.
        target: what the argument is, where that is not the folder.

    Raises:
        InputError: names the argument, the folder that stands in the way, and why.
    """
    above = (folder.absolute(), *folder.absolute().parents)
    there = next(part for part in above if os.path.lexists(part))  # never raises, as Path.exists may
    reason = "is not a folder"
    if os.path.isdir(there):
        try:
            with tempfile.TemporaryFile(dir=there):
                return
        except OSError as error:
            reason = f"cannot be written to ({error.strerror})"
    raise InputError(f"{name} is {target or folder}, but {there} {reason}: choose another folder")


def check_targets(targets: Sequence[Path], inputs: Iterable[Path], *, overwrite: bool) -> None:
    """Refuse to write where something would be lost. Writes nothing.

    Args:
        targets: files to be written.
        inputs: files that are read; none of them may be a target, through whatever link.
        overwrite: whether files that are there may be replaced.

    Raises:
        InputError: two targets are one file; a target is an input, a folder, or there already; its folder is a file.
    """
    read = {_identity(path): path for path in inputs if path.exists()}
    seen: set[Path] = set()
    for target in targets:
        place = target.parent.resolve() / target.name
        if place in seen:
            raise InputError(f"{target} would be written twice: give inputs of equal names to separate calls")
        seen.add(place)
        folder = next(parent for parent in target.absolute().parents if parent.exists() or parent.is_symlink())
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder, so {target} cannot be written: choose another folder")
        if target.exists() and _identity(target) in read:
            raise InputError(
                f"{read[_identity(target)]} would be replaced: {target} is the same file; choose another folder"
            )
        if target.is_dir():
            raise InputError(f"{target} is a folder where a file is to be written: choose another folder")
    there = [target for target in targets if target.exists() or target.is_symlink()]
    if there and not overwrite:
        more = f" and {len(there) - 1} more files exist" if len(there) > 1 else " exists"
        raise InputError(f"{there[0]}{more}: replace with --overwrite, or choose another folder")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
