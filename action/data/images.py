"""Images that are named one by one or by their folder, put together to cases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from action.data.cases import Case, natural_key, raise_problems
from action.data.folders import entries, nifti_stem
from action.data.hdf5 import is_hdf5
from action.errors import InputError


def cases_of(paths: Sequence[Path], channels: int, *, numbered: bool = False) -> list[Case]:
    """Cases without labels, in the order of ``paths``; those of a folder in natural order.

    Args:
        paths: images, or folders of them. Of several channels each has a file, ``CASE_0000``, ``CASE_0001`` ...
        channels: of every case.
        numbered: whether names may end in ``_0000`` where there is one channel, too; it is no part of the case's name.

    Raises:
        InputError: a folder without images, a channel that is missing, or a name that does not say which it is.
    """
    # Of one channel, _0000 is all that can be a number: other digits belong to the name.
    number = r"\d{4}" if channels > 1 else "0000" if numbered else "(?!)"
    files = [file for path in paths for file in (_images_in(path) if path.is_dir() else [path])]
    found: dict[tuple[Path, str], dict[int, Path]] = {}
    problems: list[str] = []
    for path in files:
        match = re.fullmatch(rf"(.+)_({number})", _stem(path))
        if match is None and channels > 1:
            problems.append(
                f"{path} does not say which of {channels} channels it is: let names end in _0000, _0001 ..., as those "
                "of the training images"
            )
            continue
        name, channel = (match[1], int(match[2])) if match else (_stem(path), 0)
        case = found.setdefault((path.parent, name), {})
        if channel in case:
            problems.append(f"{case[channel]} and {path} would be written twice, both as {name}: leave one out")
        elif channel >= channels:
            problems.append(f"{path} is one channel more than the {channels} that the run was trained on: leave it out")
        case[channel] = path
    for folder, name in found:
        further = re.fullmatch(r"(.+)_\d{4}", name)
        if channels == 1 and numbered and further and (folder, further[1]) in found:
            problems.append(
                f"{folder / name} is named as a further channel of {further[1]}, but the run was trained on one: leave "
                "it out, or rename it"
            )
    for (folder, name), case in found.items():
        missing = [f"{name}_{channel:04d}" for channel in range(channels) if channel not in case]
        if missing:
            there = ", ".join(path.name for path in case.values())
            problems.append(f"{folder / missing[0]}.nii.gz is missing beside {there}: give all {channels} channels")
    raise_problems(problems, "the images")
    return [
        Case(name, name, case[0], None, tuple(case[channel] for channel in range(1, channels)))
        for (_, name), case in found.items()
    ]


def _images_in(folder: Path) -> list[Path]:
    found = [path for path in entries(folder) if path.is_file() and (nifti_stem(path.name) or is_hdf5(path))]
    if not found:
        raise InputError(f"no image in {folder}: name the folder that holds the .nii.gz, .nii or .h5 files themselves")
    return sorted(found, key=lambda path: natural_key(path.name))


def _stem(path: Path) -> str:
    return nifti_stem(path.name) or (path.stem if is_hdf5(path) else path.name)
