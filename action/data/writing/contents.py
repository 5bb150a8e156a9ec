"""What a data set consists of, whatever layout it has: cases under their names, classes, and who is in which set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from action.data.cases import Case, Sets
from action.data.dataset import Dataset
from action.data.split import SETS, read_sets


class Name(NamedTuple):
    """What a case is called: unique, and the patient that it is of."""

    case: str
    patient: str


@dataclass(frozen=True)
class Contents:
    """A data set that is to be written.

    Args:
        cases: in natural order.
        class_names: background first.
        sets: who trains, validates and tests; without ``train`` and ``validation`` that is open.
    """

    cases: Sequence[Case]
    class_names: tuple[str, ...]
    sets: Sets

    @property
    def divided(self) -> bool:
        """Whether it is known who trains and who validates."""
        return self.sets.train is not None and self.sets.validation is not None

    def members(self, key: str) -> list[Case]:
        """The cases of a set, in the order in which it lists their patients."""
        return [case for patient in getattr(self.sets, key) or () for case in self.cases if case.patient == patient]

    def renamed(self, names: Mapping[str, Name]) -> Contents:
        """The same under other names, by those that the cases have now."""
        patients: dict[str, list[str]] = {}
        for case in self.cases:
            patients.setdefault(case.patient, []).append(names[case.name].patient)
        old_sets = (self.sets.train, self.sets.validation, self.sets.test)
        train, validation, test = (
            None if members is None else tuple(dict.fromkeys(new for old in members for new in patients[old]))
            for members in old_sets
        )
        cases = [replace(case, name=names[case.name].case, patient=names[case.name].patient) for case in self.cases]
        return replace(self, cases=cases, sets=Sets(train, validation, test, self.sets.source))


def contents_of(dataset: Dataset) -> Contents:
    """What a data set consists of; of several divisions the first.

    Raises:
        InputError: its lists of sets do not go with its cases.
    """
    file: Path | None = dataset.split_file
    sets = dataset.find_sets(0) if file is None else read_sets(file, dataset.patients)
    if sets.train is not None:  # patients without labels, whom no list needs to name, train
        listed = {name for key in SETS for name in getattr(sets, key) or ()}
        sets = sets._replace(train=(*sets.train, *(name for name in dataset.patients if name not in listed)))
    return Contents(dataset.cases, dataset.class_names, sets)
