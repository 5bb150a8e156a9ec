"""The ACDC layout (cardiac cine MRI): a folder per patient, two labelled frames named in its ``Info.cfg``."""

from __future__ import annotations

import re
from pathlib import Path

from action.data.cases import Case, Format, natural_key, raise_problems
from action.data.folders import dangling, entries, same_file
from action.data.text import read_text
from action.errors import InputError


class Acdc(Format):
    """``patientNNN/Info.cfg``, ``patientNNN/patientNNN_frameMM.nii.gz``, ``patientNNN/patientNNN_frameMM_gt.nii.gz``.

    Patient folders lie in the data folder itself or in the official ``training`` and ``testing`` folders. ``Info.cfg``
    gives the numbers of the end-diastolic and end-systolic frame; other frames and the 4-D series are not read.
    """

    looks_for = "patientNNN/Info.cfg, patientNNN_frameMM.nii.gz, patientNNN_frameMM_gt.nii.gz"
    class_names: tuple[str, ...] = ("background", "right ventricle", "myocardium", "left ventricle")

    def recognises(self, root: Path) -> bool:
        """A folder of a patient. See ``Format.recognises``."""
        return any(_patient_folders(parent, []) for parent in _parents(root))

    def find_cases(self, root: Path) -> list[Case]:
        """Both frames of every patient (one, where ED and ES name the same frame). See ``Format.find_cases``."""
        folders: dict[str, Path] = {}
        problems: list[str] = []
        for parent in _parents(root):
            if (problem := dangling(parent)) is not None:
                problems.append(problem)
            for folder in _patient_folders(parent, problems):
                if folder.name not in folders:
                    folders[folder.name] = folder
                elif not same_file(folders[folder.name], folder):
                    problems.append(f"{folder.name} is there twice: {folders[folder.name]} and {folder}; remove one")
        if not folders and not problems:
            raise InputError(f"no patients in {root}: expected folders patient001, patient002, ... (format 'acdc')")

        cases: list[Case] = []
        for patient in sorted(folders, key=natural_key):
            try:
                cases += _frames(patient, folders[patient])
            except InputError as error:
                problems.append(str(error))
        raise_problems(problems, str(root))
        return cases


FORMAT: Format = Acdc()


def _parents(root: Path) -> tuple[Path, ...]:
    return root, root / "training", root / "testing"


def _patient_folders(parent: Path, problems: list[str]) -> list[Path]:
    if not parent.is_dir():
        return []
    named = [path for path in entries(parent) if path.name.startswith("patient")]
    problems += [problem for path in named if (problem := dangling(path)) is not None]
    return [path for path in named if path.is_dir()]


def _frames(patient: str, folder: Path) -> list[Case]:
    files: dict[str, list[Path]] = {}  # by their names in lower case
    for path in entries(folder):
        files.setdefault(path.name.lower(), []).append(path)
    cases: list[Case] = []
    for frame in sorted(set(read_info(_only(files, "info.cfg") or folder / "Info.cfg"))):
        name = f"{patient}_frame{frame:02d}"
        image, label = (_only(files, f"{stem}.nii.gz", f"{stem}.nii") for stem in (name, f"{name}_gt"))
        if image is None:
            raise InputError(f"{folder / name}.nii.gz does not exist, but Info.cfg names frame {frame}")
        cases.append(Case(name, patient, image, label))
    return cases


def read_info(path: Path) -> tuple[int, int]:
    """Frame numbers (ED, ES) of an ``Info.cfg``.

    Raises:
        InputError: the file is missing or has no line ``ED: <number>`` or ``ES: <number>``.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: it must have the lines 'ED: <frame>' and 'ES: <frame>'") from error
    diastole, systole = (re.search(rf"^\s*{key}\s*:\s*(\d+)\s*$", text, re.MULTILINE) for key in ("ED", "ES"))
    if diastole is None or systole is None:
        raise InputError(f"{path} must have the lines 'ED: <frame number>' and 'ES: <frame number>'")
    return int(diastole[1]), int(systole[1])


def _only(files: dict[str, list[Path]], *names: str) -> Path | None:
    """The one file that has one of the ``names``, however they are capitalised; ``None`` where there is none.

    Raises:
        InputError: there are several, a link whose target is missing, or something that is not a file.
    """
    found = [path for name in names for path in files.get(name.lower(), ())]
    for path in found:
        if (problem := dangling(path)) is not None:
            raise InputError(problem)
        if not path.is_file():
            raise InputError(f"{path} is not a file: put the file itself in its place")
        if not same_file(found[0], path):
            raise InputError(f"{found[0]} and {path} are both there: remove one")
    return found[0] if found else None
