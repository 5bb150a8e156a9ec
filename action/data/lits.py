"""The LiTS layout (liver CT): `volume-N` and `segmentation-N`, flat or in sub-folders."""

from __future__ import annotations

import re
from pathlib import Path

from action.data.cases import Case, natural_key, raise_problems
from action.errors import InputError


class Lits:
    """`volume-N.nii[.gz]` and `segmentation-N.nii[.gz]` anywhere below the data folder; each volume is a patient."""

    class_names = ("background", "liver", "tumour")

    def find_cases(self, root: Path) -> list[Case]:
        """A case per volume; without a segmentation of the same number its label is `None`. See `Format.find_cases`."""
        found: dict[str, dict[str, Path]] = {"volume": {}, "segmentation": {}}
        problems: list[str] = []
        for path in sorted(root.rglob("*.nii*")):
            match = re.fullmatch(r"(volume|segmentation)-(\d+)\.nii(\.gz)?", path.name)
            if match is None or not path.is_file():
                continue
            files = found[match[1]]
            if match[2] in files:
                problems.append(f"{match[1]}-{match[2]} is there twice: {files[match[2]]} and {path}; remove one")
            files[match[2]] = path
        volumes, segmentations = found["volume"], found["segmentation"]
        if not volumes:
            raise InputError(f"no patients in {root}: expected files volume-0.nii, segmentation-0.nii (format 'lits')")
        for number in segmentations.keys() - volumes.keys():
            problems.append(f"{segmentations[number]} has no volume-{number}.nii[.gz] beside it")
        raise_problems(problems, str(root))
        numbers = sorted(volumes, key=natural_key)
        return [Case(f"volume-{n}", f"volume-{n}", volumes[n], segmentations.get(n)) for n in numbers]
