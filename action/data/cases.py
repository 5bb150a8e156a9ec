"""Cases of a data set, and the interface of every file layout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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


class Format(Protocol):
    """A layout of files on disk, see ``action.data.formats``.

    Attributes:
        class_names: the default; index 0 is the background.
    """

    class_names: tuple[str, ...]

    def find_cases(self, root: Path) -> list[Case]:
        """All cases under ``root`` in natural order of their names. Reads no image.

        Raises:
            InputError: no case, or a case with missing files. All problems in one message.
        """
        ...


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
