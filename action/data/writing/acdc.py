"""Writing the ACDC layout."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from action.data.cases import Case, natural_sort
from action.data.writing.base import END, Writer, put_classes, put_image, put_label, put_split
from action.data.writing.contents import Contents, Name
from action.errors import InputError


class AcdcWriter(Writer):
    """Writes ``patientNNN/Info.cfg``, ``patientNNN_frameMM.nii.gz``, ``patientNNN_frameMM_gt.nii.gz``, ``split.json``.

    Cases of other names are numbered: patients from 1 in their order, their cases as frames 1 and 2.
    """

    def names(self, cases: Sequence[Case]) -> dict[str, Name]:
        """See ``Writer.names``; a patient with more than two cases is refused."""
        by_patient: dict[str, list[Case]] = {}
        for case in cases:
            by_patient.setdefault(case.patient, []).append(case)
        for patient, members in by_patient.items():
            if len(members) > 2:
                raise InputError(
                    f"{patient} has {len(members)} cases, but ACDC's layout holds two frames of a patient: convert to "
                    "another one"
                )
        if all(_frame(case) is not None for case in cases):
            return {case.name: Name(case.name, case.patient) for case in cases}
        names = {}
        for number, patient in enumerate(natural_sort(by_patient), start=1):
            for frame, case in enumerate(by_patient[patient], start=1):
                names[case.name] = Name(f"patient{number:03d}_frame{frame:02d}", f"patient{number:03d}")
        return names

    def write(self, root: Path, contents: Contents) -> None:
        """See ``Writer.write``."""
        frames: dict[str, list[int]] = {}
        for case in contents.cases:
            put_image(case, 0, root / case.patient / f"{case.name}{END}")
            put_label(case, len(contents.class_names), root / case.patient / f"{case.name}_gt{END}")
            frame = _frame(case)
            assert frame is not None  # so they are named
            frames.setdefault(case.patient, []).append(frame)
        for patient, numbers in frames.items():
            text = f"ED: {min(numbers)}\nES: {max(numbers)}\n"
            (root / patient / "Info.cfg").write_text(text, encoding="utf-8")
        put_classes(root, contents)
        put_split(root, contents)


WRITER: Writer = AcdcWriter()


def _frame(case: Case) -> int | None:
    """The number of the frame, if the case is named as ACDC names them."""
    match = re.fullmatch(r"(patient.+)_frame(\d{2,})", case.name)
    if match is None or match[1] != case.patient or f"{int(match[2]):02d}" != match[2]:
        return None
    return int(match[2])
