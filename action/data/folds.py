"""The folds of a cross-validation: every patient with labels validates once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from action.data.cases import Case, natural_sort
from action.errors import InputError
from action.files import write_aside


@dataclass(frozen=True)
class Fold:
    """Patient names of each set of one fold, as a split file has them.

    Args:
        train: in the order from which ``split.labeled_order=list`` takes the first.
        validation, test: in natural order.
        labeled: of whom the first are labelled, ``None`` where the seed or the order says that.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    labeled: tuple[str, ...] | None = None

    @property
    def lists(self) -> dict[str, tuple[str, ...]]:
        """What a split file says of it."""
        lists = {"train": self.train, "validation": self.validation, "test": self.test}
        return lists if self.labeled is None else {**lists, "labeled": self.labeled}


def make_folds(
    cases: Sequence[Case],
    count: int,
    *,
    order: Sequence[str],
    test: Sequence[str],
    shuffle_seed: int = 0,
    always: Sequence[str] = (),
    labeled: Sequence[str] | None = None,
) -> list[Fold]:
    """Deal the patients with labels to ``count`` validation sets whose sizes differ by one at most.

    Patients with an image that has no label train in every fold.

    Args:
        cases: of the data set.
        count: number of folds, two at least.
        order: all patients; training patients keep it.
        test: who tests in every fold.
        shuffle_seed: order in which patients are dealt.
        always: who trains in every fold, though there are labels.
        labeled: who is labelled first, for ``Fold.labeled``.

    Raises:
        InputError: fewer patients to deal than folds, or a number of folds below two.
    """
    if count < 2:
        raise InputError(f"folds is {count}: a cross-validation needs at least 2")
    fixed = {case.patient for case in cases if case.label is None} | set(test) | set(always)
    dealt = [patient for patient in natural_sort(order) if patient not in fixed]
    if len(dealt) < count:
        raise InputError(
            f"folds is {count}, but {len(dealt)} patients have labels and neither test nor always train: ask for "
            "fewer folds, or set fewer patients aside to test (split.proportions)"
        )
    shuffled = [dealt[i] for i in np.random.default_rng(shuffle_seed).permutation(len(dealt))]
    folds = []
    for index in range(count):
        validation = shuffled[index::count]
        train = [patient for patient in order if patient not in {*validation, *test}]
        named = None if labeled is None else tuple(name for name in labeled if name in train)
        folds.append(Fold(tuple(train), tuple(natural_sort(validation)), tuple(natural_sort(test)), named))
    return folds


def save_fold(lists: Mapping[str, Sequence[str]], path: Path) -> None:
    """Write a split file, aside and then renamed."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps(lists, indent=2) + "\n", encoding="utf-8")
