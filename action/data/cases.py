"""Cases of a data set, and the interface of every file layout."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from action.errors import InputError


@dataclass(frozen=True)
class Case:
    """One volume: a CT scan, or one frame of a cardiac cine series.

    Args:
        name: unique in the data set; predictions are written under it, e.g. ``patient001_frame01``.
        patient: the unit of every split. All cases of a patient are always in the same set.
        image: file of the intensities, by which messages name the case; of several channels the first.
        label: file of the class indices, ``None`` where nobody has drawn one. In HDF5 it is the image's.
        others: further files of the image: its other channels or, in HDF5, its slices after the first.
    """

    name: str
    patient: str
    image: Path
    label: Path | None
    others: tuple[Path, ...] = ()

    @property
    def images(self) -> tuple[Path, ...]:
        """All files of the image."""
        return self.image, *self.others

    @property
    def files(self) -> list[Path]:
        """All files of the case."""
        return [*self.images, *([] if self.label is None else [self.label])]


class Sets(NamedTuple):
    """Which patients a data set itself puts into which set; ``None``: it leaves that open.

    Attributes:
        train: in the order of the list that says so.
        validation: likewise.
        test: likewise; may be empty.
        source: the file, for messages.
    """

    train: tuple[str, ...] | None = None
    validation: tuple[str, ...] | None = None
    test: tuple[str, ...] | None = None
    source: str = ""


class Format(ABC):
    """A layout of files on disk, see ``action.data.formats``.

    Attributes:
        looks_for: the files that make the layout, for messages.
        class_names: the default; index 0 is the background.
    """

    looks_for: ClassVar[str]
    class_names: tuple[str, ...] = ()

    @abstractmethod
    def recognises(self, root: Path) -> bool:
        """Whether the folder looks like this layout, by names alone; what is wrong in it, ``find_cases`` says."""

    @abstractmethod
    def find_cases(self, root: Path) -> list[Case]:
        """All cases under ``root`` in natural order of their names. Reads no image.

        Raises:
            InputError: no case, or a case with missing files. All problems in one message.
        """

    def find_class_names(self, root: Path, cases: Sequence[Case]) -> tuple[str, ...]:
        """The classes where no ``dataset.json`` names them.

        Raises:
            InputError: they cannot be told.
        """
        return self.class_names

    def count_folds(self, root: Path) -> int:
        """How many folds the data set itself prescribes; 0: it leaves them open."""
        return 0

    def find_sets(self, root: Path, cases: Sequence[Case], fold: int) -> Sets:
        """The sets that the data set itself prescribes.

        Args:
            root: the data folder.
            cases: what ``find_cases`` found there.
            fold: which of several divisions.

        Raises:
            InputError: no such fold, or a list that does not go with the cases.
        """
        if fold:
            raise InputError(f"split.fold is {fold}, but {root} prescribes no folds: leave it out")
        return Sets()


def patient_of(name: str) -> str:
    """The patient of a case in layouts without patients: frames ``NAME_frameNN`` are NAME's, others their own."""
    return re.sub(r"_frame\d+$", "", name)


def patients_of(names: Iterable[str], cases: Sequence[Case], source: str) -> tuple[str, ...]:
    """The patients of the cases that a list names, each once and in its order.

    Args:
        names: of cases.
        cases: of the data set.
        source: the list, for the message.

    Raises:
        InputError: a name that is no case.
    """
    known = {case.name: case.patient for case in cases}
    names = list(names)
    if absent := natural_sort({name for name in names if name not in known}):
        raise InputError(
            f"{source} names cases that are not in the data: {', '.join(absent)}; add their files, or take them out"
        )
    return tuple(dict.fromkeys(known[name] for name in names))


def natural_sort(names: Iterable[str]) -> list[str]:
    """Sort so that ``volume-2`` comes before ``volume-10``."""
    return sorted(names, key=natural_key)


def natural_key(name: str) -> tuple[list[int | str], str]:
    """Sort key that compares runs of digits as numbers; the name itself breaks ties such as ``1`` and ``01``."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def raise_problems(problems: Sequence[str], what: str) -> None:
    """Raise one ``InputError`` with all ``problems``, if there are any."""
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError(f"{len(problems)} problems in {what}:\n" + "\n".join(f"  - {line}" for line in problems))
