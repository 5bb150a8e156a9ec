"""Splits by patient: train (labelled and unlabelled), validation, test."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from action.data.cases import Case, Sets, natural_sort
from action.data.text import read_json
from action.errors import InputError
from action.files import write_aside

SETS = ("train", "validation", "test")
FEW = 3
"""Patients with labels, beside others without: so few validate and teach, and none tests."""


@dataclass(frozen=True)
class Split:
    """Patient names of each set, in natural order; every patient is in exactly one. Training uses the first two."""

    labeled: tuple[str, ...]
    unlabeled: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def make_split(
    cases: Sequence[Case],
    fractions_or_counts: Sequence[float | int] = (0.7, 0.1, 0.2),
    *,
    labeled: int | Sequence[str],
    seed: int,
    order: str = "seed",
    file: Path | None = None,
    shuffle_seed: int = 0,
    prescribed: Sets = Sets(),  # noqa: B008  a tuple, so one may serve all
) -> Split:
    """Divide the patients of ``cases``.

    Test and validation sets are the same whatever the run's ``seed``, so that runs can be compared. Patients with an
    image that has no label train, and the shares are those of the others; of three or fewer others none tests. The
    labelled patients are among the training patients all of whose cases have labels; a smaller choice is part of a
    larger one. The labels of the other training patients are not used.

    Args:
        cases: of the data set.
        fractions_or_counts: of train, validation, test: fractions (sum 1) or numbers of patients (sum all). A share 0
            of test leaves that set empty.
        labeled: number of labelled patients, or their names.
        seed: draws the labelled patients, for the order ``seed``.
        order: ``seed``, or ``list``: the first of the training patients as the file lists them.
        file: JSON with the keys ``train``, ``validation``, ``test``, lists of patient names; overrides the fractions.
            A list ``labeled`` in it names the patients of whom the first are labelled, and overrides the order.
        shuffle_seed: chooses which patients are in which set.
        prescribed: the sets that the data set itself prescribes; a file comes before them.

    Raises:
        InputError: too few patients (with or without labels), a validation or test patient without labels, a file
            that does not divide exactly the patients that are there, a name that is no training patient with labels.
    """
    patients = natural_sort({case.patient for case in cases})
    incomplete = {case.patient for case in cases if case.label is None}
    named: Sequence[str] | None = None
    if file is not None:
        named = read_labeled(Path(file))
        train, validation, test = _read_sets(Path(file), patients)
    else:
        train, validation, test = _deal(patients, incomplete, fractions_or_counts, shuffle_seed, prescribed)

    for name, members in (("validation", validation), ("test", test)):
        missing = natural_sort(incomplete & set(members))
        if missing:
            source = prescribed.source if file is None else file
            raise InputError(
                f"{source}: {name} patients without labels: {', '.join(missing)}; add their labels or move them"
            )

    candidates = [patient for patient in train if patient not in incomplete]
    if isinstance(labeled, int):
        source = f"'labeled' of {file}"
    else:
        named, labeled, source = labeled, len(labeled), "labeled_patients"
    if named is not None:
        candidates = _checked(named, candidates, source)
    elif order == "seed":
        candidates = natural_sort(candidates)
        candidates = [candidates[i] for i in np.random.default_rng(seed).permutation(len(candidates))]
    if not 1 <= labeled <= len(candidates):
        among = f"the {len(train)} training patients have labels" if named is None else f"{source} are named"
        raise InputError(
            f"{labeled} labelled patients asked for, but {len(candidates)} of {among} (besides {len(validation)} to "
            f"validate and {len(test)} to test): ask for at least 1 and at most "
            "that many"
        )
    chosen = set(candidates[:labeled])
    sets = (chosen, set(train) - chosen, validation, test)
    return Split(*(tuple(natural_sort(members)) for members in sets))


def _checked(named: Sequence[str], candidates: Sequence[str], source: str) -> list[str]:
    twice = natural_sort({name for name in named if list(named).count(name) > 1})
    if twice:
        raise InputError(f"{source} names {', '.join(twice)} twice: name each patient once")
    if wrong := [name for name in named if name not in candidates]:
        raise InputError(
            f"{source} names {', '.join(wrong)}, which is no training patient with labels for every image: choose "
            f"among {', '.join(natural_sort(candidates))}"
        )
    return list(named)


def save_split(split: Split, path: Path | str) -> None:
    """Write ``split`` as JSON, aside and then renamed."""
    with write_aside(Path(path)) as aside:
        aside.write_text(json.dumps(asdict(split), indent=2) + "\n", encoding="utf-8")


def load_split(path: Path | str) -> Split:
    """Read what ``save_split`` wrote.

    Raises:
        InputError: missing or damaged file.
    """
    keys = tuple(field.name for field in fields(Split))
    return Split(*(tuple(names) for names in _read_lists(Path(path), keys)))


def _deal(
    patients: Sequence[str], incomplete: Set[str], shares: Sequence[float | int], seed: int, prescribed: Sets
) -> list[list[str]]:
    """Train, validation and test patients: those that are prescribed, and the others by their shares.

    Raises:
        InputError: shares that cannot be; a patient in two prescribed sets, or in none where they leave no set open.
    """
    placed = [name for names in prescribed[: len(SETS)] for name in names or ()]
    if twice := natural_sort({name for name in placed if placed.count(name) > 1}):
        raise InputError(
            f"{prescribed.source}: patients {', '.join(twice)} are in several sets: leave all cases of each in one"
        )
    others = [patient for patient in patients if patient not in placed]
    unlabeled = [patient for patient in others if patient in incomplete]
    dealt = [patient for patient in others if patient not in incomplete]
    train, validation, test = (list(names or ()) for names in prescribed[: len(SETS)])
    if prescribed.validation is not None:
        if dealt:
            raise InputError(f"{prescribed.source} leaves out patients {', '.join(dealt)}: put each in train or val")
        return [[*train, *unlabeled], validation, test]
    tested = prescribed.test is not None
    counts = _counts(shares, len(dealt), len(unlabeled), tested=len(test) if tested else None)
    shuffled = [dealt[i] for i in np.random.default_rng(seed).permutation(len(dealt))]
    if not tested:
        test = shuffled[: counts[2]]
        shuffled = shuffled[counts[2] :]
    return [[*shuffled[counts[1] :], *unlabeled], shuffled[: counts[1]], test]


def _counts(
    shares: Sequence[float | int], patients: int, unlabeled: int = 0, tested: int | None = None
) -> tuple[int, int, int]:
    """Numbers of train, validation and test patients.

    Args:
        shares: of all three.
        patients: with labels, those of a prescribed test set aside.
        unlabeled: patients who train in any case.
        tested: patients of a prescribed test set; ``None``: it is to be made.
    """
    if len(shares) != 3 or min(shares) < 0:
        raise InputError(f"split {list(shares)}: give three fractions or counts, of train, validation, test")
    if any(share > 1 for share in shares) or all(isinstance(share, int) for share in shares):
        train, validation, test = (int(share) for share in shares)
        counts = train, validation, test
        if counts != tuple(shares):
            raise InputError(f"split {list(shares)}: either three fractions or three whole numbers of patients")
        everybody = patients + unlabeled + (tested or 0)
        if sum(counts) != everybody:
            raise InputError(f"split {list(shares)} asks for {sum(counts)} patients, but there are {everybody}")
        if tested is not None and test != tested:
            raise InputError(f"split {list(shares)} asks for {test} test patients, but {tested} are prescribed")
    else:
        if abs(sum(shares) - 1) > 1e-6:
            raise InputError(f"split {list(shares)}: fractions must sum to 1, not {sum(shares):g}")
        total = 1 - shares[2] if tested is not None else 1.0
        validation = max(1, round(shares[1] / total * patients)) if shares[1] else 0
        few = unlabeled and patients <= FEW
        test = 0 if tested is not None or few or not shares[2] else max(1, round(shares[2] * patients))
        counts = (patients + unlabeled - validation - test, validation, test)
    # Whoever validates or tests has labels, and one patient with labels must be left to learn from.
    if min(counts[:2]) < 1 or counts[1] + (counts[2] if tested is None else 0) >= patients:
        who = f"{'patient' if patients == 1 else 'patients'}{' with labels' if unlabeled else ''}"
        tests = bool(counts[2]) and tested is None
        if patients < 2 + tests:
            raise InputError(
                f"{patients} {who} {'is' if patients == 1 else 'are'} too few for the split {list(shares)}: one to "
                f"learn from{', one to test' if tests else ''} and one for validation are needed; label more"
                f"{', or give test the share 0' if tests else ''}"
            )
        raise InputError(
            f"split {list(shares)} of {patients} {who}: each set needs one at least, and only that of test may be "
            "asked for with 0"
        )
    return counts


def read_sets(path: Path, patients: Sequence[str]) -> Sets:
    """The sets of a split file, which divides all ``patients``.

    Raises:
        InputError: it cannot be read, or does not divide them.
    """
    train, validation, test = (tuple(names) for names in _read_sets(path, patients))
    return Sets(train, validation, test, str(path))


def _read_sets(path: Path, patients: Sequence[str]) -> list[list[str]]:
    sets = _read_lists(path, SETS)
    listed = [name for names in sets for name in names]
    twice = natural_sort({name for name in listed if listed.count(name) > 1})
    absent, left_out = natural_sort(set(listed) - set(patients)), natural_sort(set(patients) - set(listed))
    for problem, names in (("twice", twice), ("that are not in the data", absent)):
        if names:
            raise InputError(f"{path} names patients {problem}: {', '.join(names)}")
    if left_out:
        raise InputError(f"{path} leaves out patients {', '.join(left_out)}: put each in train, validation or test")
    for key, names in zip(SETS, sets, strict=True):
        if not names and key != "test":
            raise InputError(f"{path}: '{key}' is empty, training and validation need one patient at least")
    return sets


def read_labeled(path: Path) -> list[str] | None:
    """The list ``labeled`` of a split file, if it has one."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None  # said where the sets are read
    return _read_lists(path, ["labeled"])[0] if isinstance(content, dict) and "labeled" in content else None


def _read_lists(path: Path, keys: Sequence[str]) -> list[list[str]]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"split file {path} cannot be read ({error})") from error
    for key in keys:
        names = content.get(key) if isinstance(content, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"split file {path}: '{key}' must be a list of patient names")
    return [content[key] for key in keys]
