"""The interface of everything that writes a layout, and the files that layouts share."""

from __future__ import annotations

import gzip
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from action.data.cases import Case, patient_of
from action.data.hdf5 import is_hdf5
from action.data.nifti import write_volume
from action.data.reading import read_channels, read_label
from action.data.split import SETS
from action.data.writing.contents import Contents, Name
from action.errors import InputError
from action.files import flush, write_aside

END = ".nii.gz"


class Writer(ABC):
    """Writes one layout.

    Attributes:
        channels: whether an image may have several.
    """

    channels: bool = False

    def names(self, cases: Sequence[Case]) -> dict[str, Name]:
        """What the cases are called in this layout, by the names that they have.

        Names stay where they say whose a case is, as ``patient_of`` reads it.

        Raises:
            InputError: the layout cannot hold them.
        """
        if all(patient_of(case.name) == case.patient for case in cases):
            return {case.name: Name(case.name, case.patient) for case in cases}
        counted: dict[str, int] = {}
        names = {}
        for case in cases:
            counted[case.patient] = counted.get(case.patient, 0) + 1
            names[case.name] = Name(f"{case.patient}_frame{counted[case.patient]:02d}", case.patient)
        return names

    @abstractmethod
    def write(self, root: Path, contents: Contents) -> None:
        """Write all files below ``root``, which is a folder of its own.

        Raises:
            InputError: a file of the data set cannot be read.
        """


def put_image(case: Case, channel: int, target: Path) -> None:
    """Write a channel of an image as compressed NIfTI: the very bytes of a file that is NIfTI already."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_hdf5(case.image):
        _put_array(next(read_channels(case)).array, target)
    else:
        _put_nifti(case.images[channel], target)


def put_label(case: Case, classes: int, target: Path) -> None:
    """Write a label as ``put_image`` does; none where there is none."""
    if case.label is None:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_hdf5(case.label):
        label = read_label(case, next(read_channels(case)), classes)
        assert label is not None  # the case has one
        _put_array(label, target)
    else:
        _put_nifti(case.label, target)


def put_json(content: Any, target: Path) -> None:
    """Write a JSON file."""
    with write_aside(target) as aside:
        aside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def put_classes(root: Path, contents: Contents) -> None:
    """Write ``dataset.json`` with the names of the classes, as every layout but nnU-Net's takes them."""
    put_json({"classes": list(contents.class_names)}, root / "dataset.json")


def put_split(root: Path, contents: Contents) -> None:
    """Write ``split.json``, if the sets are known."""
    if contents.divided:
        put_json({key: list(getattr(contents.sets, key) or ()) for key in SETS}, root / "split.json")


def _put_nifti(source: Path, target: Path) -> None:
    if not source.is_file():
        raise InputError(f"{source} does not exist any more: bring it back, and start again")
    packed = source.suffix.lower() == ".gz"
    with source.open("rb") as read, (open if packed else gzip.open)(target, "wb") as write:
        shutil.copyfileobj(read, write, 1 << 20)
    flush(target)


def _put_array(array: np.ndarray, target: Path) -> None:
    """Write voxels that have no size: a header without a unit says so."""
    write_volume(target, array, np.eye(4), nib.Nifti1Header())
