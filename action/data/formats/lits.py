"""The LiTS layout (liver CT): ``volume-N`` and ``segmentation-N``, flat or in sub-folders."""

from __future__ import annotations

import re
from pathlib import Path

from action.data.cases import Case, Format, natural_key, raise_problems
from action.data.folders import same_file, walk
from action.data.nifti import is_prediction
from action.errors import InputError


class Lits(Format):
    """``volume-N.nii[.gz]`` and ``segmentation-N.nii[.gz]`` anywhere below the data folder; each volume is a patient.

    Linked folders are entered. Hidden and system folders, and volumes that are predictions, are passed over.
    """

    looks_for = "volume-N.nii[.gz], segmentation-N.nii[.gz]"
    class_names: tuple[str, ...] = ("background", "liver", "tumour")

    def recognises(self, root: Path) -> bool:
        """A segmentation anywhere: volumes of such names lie in other layouts, too. See ``Format.recognises``."""
        return any((_kind_and_number(path) or ("",))[0] == "segmentation" for path in walk(root, []))

    def find_cases(self, root: Path) -> list[Case]:
        """A case per volume; its label is ``None`` without a segmentation of its number. See ``Format.find_cases``."""
        found: dict[str, dict[str, Path]] = {"volume": {}, "segmentation": {}}
        problems: list[str] = []
        for path in walk(root, problems):
            if (named := _kind_and_number(path)) is None or not path.is_file():
                continue
            kind, number = named
            if kind == "volume" and is_prediction(path):
                continue
            files = found[kind]
            if number not in files:
                files[number] = path
            elif not same_file(files[number], path):
                problems.append(f"{kind}-{number} is there twice: {files[number]} and {path}; remove one")
        volumes, segmentations = found["volume"], found["segmentation"]
        for number in sorted(segmentations.keys() - volumes.keys(), key=natural_key):
            problems.append(f"{segmentations[number]} has no volume-{number}.nii[.gz] beside it")
        if not volumes and not problems:
            raise InputError(f"no patients in {root}: expected files volume-0.nii, segmentation-0.nii (format 'lits')")
        raise_problems(problems, str(root))
        numbers = sorted(volumes, key=natural_key)
        return [Case(f"volume-{n}", f"volume-{n}", volumes[n], segmentations.get(n)) for n in numbers]


FORMAT: Format = Lits()


def _kind_and_number(path: Path) -> tuple[str, str] | None:
    match = re.fullmatch(r"(volume|segmentation)-(\d+)\.nii(\.gz)?", path.name, re.IGNORECASE)
    return None if match is None else (match[1].lower(), match[2])
