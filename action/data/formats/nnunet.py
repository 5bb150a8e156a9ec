"""nnU-Net's raw layout: a file for each channel of a case, and a ``dataset.json`` that says what there is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from action.data.cases import Case, Format, Sets, natural_key, patient_of, patients_of, raise_problems
from action.data.folders import dangling, entries, nifti_files
from action.data.text import read_json
from action.errors import InputError

ENDINGS = (".nii.gz", ".nii")
FOLDERS = {"imagesTr": "labelsTr", "imagesUn": None, "imagesTs": "labelsTs"}
"""Where images lie, and where their labels do."""


class NnUnet(Format):
    """``imagesTr/CASE_0000.nii.gz``, ``_0001`` ... for further channels, ``labelsTr/CASE.nii.gz``, ``dataset.json``.

    A training case without a label is unlabelled, as are all in ``imagesUn``. Cases in ``imagesTs`` are test cases if
    ``labelsTs`` has their labels; others there are to be predicted and no part of the data set. ``splits_final.json``
    divides the training cases. Where there is one channel, its files may lack the ``_0000``, as in nnU-Net's first
    version.
    """

    looks_for = "dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz, unlabelled imagesUn/CASE_0000.nii.gz"

    def recognises(self, root: Path) -> bool:
        """A folder ``imagesTr``. See ``Format.recognises``."""
        return (root / "imagesTr").is_dir()

    def find_cases(self, root: Path) -> list[Case]:
        """The cases of all folders. See ``Format.find_cases``."""
        if not self.recognises(root) and dangling(root / "imagesTr") is None:
            raise InputError(f"no patients in {root}: expected dataset.json and a folder imagesTr (format 'nnunet')")
        channels, ending = _read_description(root / "dataset.json")
        cases: dict[str, Case] = {}
        problems = list(_mistyped(root))
        for images, labels in FOLDERS.items():
            known = nifti_files(root / labels, problems) if labels else {}
            found = _channels(nifti_files(root / images, problems), channels, ending, problems)
            for name in sorted(known.keys() - found.keys(), key=natural_key):
                problems.append(f"{known[name]} has no image {images}/{name}_0000{ending}: add it, or remove the label")
            for name, files in found.items():
                if not files or (images == "imagesTs" and name not in known):
                    continue
                if name in cases:
                    problems.append(f"{name} is there twice: {cases[name].image} and {files[0]}; remove one")
                cases[name] = Case(name, patient_of(name), files[0], known.get(name), tuple(files[1:]))
        if not cases and not problems:
            raise InputError(f"no patients in {root}: expected files imagesTr/CASE_0000{ending} (format 'nnunet')")
        raise_problems(problems, str(root))
        return [cases[name] for name in sorted(cases, key=natural_key)]

    def find_class_names(self, root: Path, cases: Sequence[Case]) -> tuple[str, ...]:
        """There are none without ``labels``."""
        raise InputError(
            f"{root / 'dataset.json'} has no 'labels': map the name of every class to its value, as in "
            '"labels": {"background": 0, "liver": 1}'
        )

    def count_folds(self, root: Path) -> int:
        """Those of ``splits_final.json``. See ``Format.count_folds``."""
        path = root / "splits_final.json"
        return len(_read_folds(path)) if path.is_file() else 0

    def find_sets(self, root: Path, cases: Sequence[Case], fold: int) -> Sets:
        """Test cases by their folder, the others by ``splits_final.json``. See ``Format.find_sets``."""
        path = root / "splits_final.json"
        test = tuple(dict.fromkeys(case.patient for case in cases if case.image.parent.name == "imagesTs"))
        if (problem := dangling(path)) is not None:
            raise InputError(problem)
        if not path.is_file():
            super().find_sets(root, cases, fold)
            return Sets(test=test or None, source=f"{root / 'imagesTs'}")
        folds = _read_folds(path)
        if fold >= len(folds):
            raise InputError(
                f"split.fold is {fold}, but {path} has the folds 0 to {len(folds) - 1}: choose one of them"
            )
        source = f"fold {fold} of {path}"
        train, validation = (patients_of(names, cases, source) for names in folds[fold])
        return Sets(train, validation, test, source)


FORMAT: Format = NnUnet()


def _read_description(path: Path) -> tuple[int, str]:
    """Number of channels, and how the files' names end.

    Raises:
        InputError: ``dataset.json`` is missing or lacks something.
    """
    if (problem := dangling(path)) is not None:
        raise InputError(problem)
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): nnU-Net's layout needs it, with 'channel_names', 'labels' and "
            "'file_ending'"
        ) from error
    content = content if isinstance(content, dict) else {}
    key = "channel_names" if "channel_names" in content else "modality"  # as the first version called them
    channels = content.get(key)
    if not isinstance(channels, dict) or sorted(channels) != sorted(str(index) for index in range(len(channels))):
        raise InputError(
            f'{path}: \'{key}\' is {channels!r}; it must name the channels, as in "channel_names": {{"0": "T1", "1": '
            '"T2"}'
        )
    if not channels:
        raise InputError(f"{path}: '{key}' is empty; name one channel at least")
    ending = content.get("file_ending", ".nii.gz")
    if ending not in ENDINGS:
        raise InputError(
            f"{path}: 'file_ending' is {ending!r}, but only {' and '.join(ENDINGS)} are read: convert the files to "
            "NIfTI, for instance with SimpleITK, and change it"
        )
    return len(channels), ending


def _channels(files: dict[str, Path], count: int, ending: str, problems: list[str]) -> dict[str, list[Path]]:
    """The files of each case, a channel each, in order; a case that lacks one is a problem, and has none here."""
    found: dict[str, dict[int, Path]] = {}
    for stem, path in files.items():
        if path.name[len(stem) :].lower() != ending:
            problems.append(f"{path} does not end in {ending}, which dataset.json says: convert it, or correct that")
            continue
        match = re.fullmatch(r"(.+)_(\d{4})", stem)
        if match is None and count > 1:
            problems.append(f"{path} does not say which channel it is: let its name end in _0000{ending}, _0001 ...")
            continue
        name, channel = (match[1], int(match[2])) if match else (stem, 0)
        if channel in (there := found.setdefault(name, {})):
            problems.append(f"{there[channel]} and {path} are both there: remove one")
        there[channel] = path
    whole: dict[str, list[Path]] = {}
    for name in sorted(found, key=natural_key):
        there = found[name]
        missing = [f"{name}_{channel:04d}{ending}" for channel in range(count) if channel not in there]
        surplus = [str(path) for channel, path in sorted(there.items()) if channel >= count]
        folder = next(iter(there.values())).parent
        if missing:
            problems.append(f"{folder / missing[0]} does not exist, but dataset.json names {count} channels: add it")
        if surplus:
            problems.append(f"{surplus[0]} is a channel that dataset.json does not name: name it, or remove the file")
        whole[name] = [] if missing or surplus else [there[channel] for channel in range(count)]
    return whole


def _mistyped(root: Path) -> Iterator[str]:
    """A sentence about each folder whose name is nearly one of the layout's that is not there."""
    names = {name for pair in FOLDERS.items() for name in pair if name}
    missing = [name for name in names if not (root / name).exists()]
    for folder in entries(root):
        if folder.is_dir() and folder.name not in names and (near := get_close_matches(folder.name, missing, 1, 0.9)):
            yield f"{folder} is no folder of this layout: is {near[0]} meant? Rename it"


def _read_folds(path: Path) -> list[tuple[list[str], list[str]]]:
    try:
        content: Any = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON ({error}): repair or remove it") from error
    try:
        folds = [(fold["train"], fold["val"]) for fold in content]
        sound = bool(folds) and all(_are_names(train) and _are_names(val) for train, val in folds)
    except (TypeError, KeyError):
        sound = False
    if not sound:
        raise InputError(
            f"{path} must be a list of folds, each with lists of cases under 'train' and 'val', neither of them empty"
        )
    return folds


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)
