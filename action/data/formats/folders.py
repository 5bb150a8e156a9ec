"""Images in one folder, labels of the same names in another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from action.data.cases import Case, Format, natural_key, patient_of, raise_problems
from action.data.folders import dangling, nifti_files
from action.data.nifti import label_values
from action.errors import InputError

MOST = 64
"""Classes that are numbered and not named; more are rather grey values."""


class Folders(Format):
    """``images/NAME.nii[.gz]``, ``labels/NAME.nii[.gz]``; an image without a label is unlabelled.

    Each image is a patient, but ``NAME_frame01``, ``NAME_frame02`` ... are one. Classes that no ``dataset.json`` names
    are called by their values.
    """

    looks_for = "images/NAME.nii.gz, labels/NAME.nii.gz"

    def recognises(self, root: Path) -> bool:
        """A folder ``images``. See ``Format.recognises``."""
        return (root / "images").is_dir()

    def find_cases(self, root: Path) -> list[Case]:
        """A case per image. See ``Format.find_cases``."""
        problems: list[str] = []
        images, labels = (nifti_files(root / name, problems) for name in ("images", "labels"))
        for name in sorted(labels.keys() - images.keys(), key=natural_key):
            problems.append(f"{labels[name]} has no image images/{name}.nii.gz: add it, or remove the label")
        if not images and not problems:
            raise InputError(f"no patients in {root}: expected files images/NAME.nii.gz (format 'folders')")
        raise_problems(problems, str(root))
        return [Case(n, patient_of(n), images[n], labels.get(n)) for n in sorted(images, key=natural_key)]

    def find_class_names(self, root: Path, cases: Sequence[Case]) -> tuple[str, ...]:
        """The values of all labels. See ``Format.find_class_names``."""
        known: set[float] = {0.0}
        problems: list[str] = []
        for case in cases:
            if case.label is None or dangling(case.label) is not None:
                continue
            try:
                known |= _values(case.label, case.label.stat().st_mtime_ns)
            except InputError as error:
                problems.append(str(error))
        raise_problems(problems, str(root))
        values = sorted(known)
        if len(values) == 1 or len(values) > MOST or values != list(range(len(values))):
            shown = ", ".join(f"{value:g}" for value in values[:8]) + (", ..." if len(values) > 8 else "")
            raise InputError(
                f"the labels in {root / 'labels'} have the values {shown}: number the classes 0, 1, 2, ... without "
                "gaps, 0 the background, or name them in dataset.json, as in "
                '{"classes": ["background", "liver", "tumour"]}'
            )
        return ("background", *(f"{value:g}" for value in values[1:]))


FORMAT: Format = Folders()


@lru_cache(maxsize=4096)
def _values(path: Path, changed: int) -> frozenset[float]:
    """The values of a label file as it was at the time ``changed``: a program asks more than once."""
    return label_values(path)
