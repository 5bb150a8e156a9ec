"""The ACDC layout (cardiac cine MRI): a folder per patient, two labelled frames named in its `Info.cfg`."""

from __future__ import annotations

import re
from pathlib import Path

from action.data.cases import Case, natural_key, raise_problems
from action.errors import InputError


class Acdc:
    """`patientNNN/Info.cfg`, `patientNNN/patientNNN_frameMM.nii.gz`, `patientNNN/patientNNN_frameMM_gt.nii.gz`.

    Patient folders lie in the data folder itself or in the official `training` and `testing` folders. `Info.cfg`
    gives the numbers of the end-diastolic and end-systolic frame; other frames and the 4-D series are not read.
    """

    class_names = ("background", "right ventricle", "myocardium", "left ventricle")

    def find_cases(self, root: Path) -> list[Case]:
        """Both frames of every patient (one, where ED and ES name the same frame). See `Format.find_cases`."""
        folders: dict[str, Path] = {}
        problems: list[str] = []
        for parent in (root, root / "training", root / "testing"):
            for folder in parent.glob("patient*"):
                if not folder.is_dir():
                    continue
                if folder.name in folders:
                    problems.append(f"{folder.name} is there twice: {folders[folder.name]} and {folder}; remove one")
                folders[folder.name] = folder
        if not folders:
            raise InputError(f"no patients in {root}: expected folders patient001, patient002, ... (format 'acdc')")

        cases = []
        for patient in sorted(folders, key=natural_key):
            try:
                cases += _frames(patient, folders[patient])
            except InputError as error:
                problems.append(str(error))
        raise_problems(problems, str(root))
        return cases


def _frames(patient: str, folder: Path) -> list[Case]:
    cases = []
    for frame in sorted(set(read_info(folder / "Info.cfg"))):
        name = f"{patient}_frame{frame:02d}"
        image, label = _nifti(folder, name), _nifti(folder, f"{name}_gt")
        if image is None:
            raise InputError(f"{folder / name}.nii.gz does not exist, but Info.cfg names frame {frame}")
        cases.append(Case(name, patient, image, label))
    return cases


def read_info(path: Path) -> tuple[int, int]:
    """Frame numbers (ED, ES) of an `Info.cfg`.

    Raises:
        InputError: the file is missing or has no line `ED: <number>` or `ES: <number>`.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path} cannot be read: it must have the lines 'ED: <frame>' and 'ES: <frame>'") from error
    numbers = [re.search(rf"^\s*{key}\s*:\s*(\d+)\s*$", text, re.MULTILINE) for key in ("ED", "ES")]
    if None in numbers:
        raise InputError(f"{path} must have the lines 'ED: <frame number>' and 'ES: <frame number>'")
    return int(numbers[0][1]), int(numbers[1][1])


def _nifti(folder: Path, stem: str) -> Path | None:
    return next((path for end in (".nii.gz", ".nii") if (path := folder / (stem + end)).is_file()), None)
