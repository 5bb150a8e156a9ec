"""What is odd about a data set whose files can be read: said by ``action.prepare check`` and by ``action.train``."""

from __future__ import annotations

import hashlib
import re
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from action.data.cases import natural_sort, raise_problems
from action.data.unpacking import library
from action.data.volumes import LoadedCase

_CHECKED = 2**15
"""Bytes of a slice that share a checksum."""
FIRST = 3
"""Files that a note on several names."""


@dataclass(frozen=True)
class Facts:
    """What is kept of a case to compare it with the others.

    Args:
        name, patient: as in ``Case``.
        blank: whether all voxels are the same, in every channel.
        digest: of the channels' shapes and their voxels, or checksums of these; the same scan has the same.
        voxels: number of voxels of each class [C], ``None`` without a label.
    """

    name: str
    patient: str
    blank: bool
    digest: bytes
    voxels: np.ndarray | None


def facts_of(name: str, patient: str, channels: Iterable[np.ndarray], label: np.ndarray | None, classes: int) -> Facts:
    """``Facts`` of a case with these channels [Z, Y, X] and label [Z, Y, X]; see there."""
    digest, blank = hashlib.sha256(), True
    for image in channels:
        digest.update(f"{image.shape}".encode())
        for slice_ in image:
            digest.update(_condensed(slice_))
        first = image.flat[0]
        blank = blank and all(bool((slice_ == first).all()) for slice_ in image)  # as a rule one is enough
    return Facts(name, patient, blank, digest.digest(), None if label is None else _counts(label, classes))


def _condensed(slice_: np.ndarray) -> bytes | memoryview:
    """CRC-32 of every ``_CHECKED`` bytes of a slice [Y, X]: chance finds no two scans in which all of them agree.

    Nobody forges a copy, so that a cryptographic digest of all voxels would be work for nothing. A slice of so few
    bytes that one checksum were all stays as it is: of many scans that are one such slice, two would share it.
    """
    content = np.ascontiguousarray(slice_).data.cast("B")
    if len(content) <= _CHECKED:
        return content
    checksums = [library.crc32(content[place : place + _CHECKED]) for place in range(0, len(content), _CHECKED)]
    return struct.pack(f"<{len(checksums)}I", *checksums)


def of_case(case: LoadedCase, classes: int) -> Facts:
    """``Facts`` of a case as the network sees it."""
    if case.facts is not None:
        return case.facts
    label = case.label if case.truth is None else case.truth
    label = None if label is None else np.asarray(label)
    return facts_of(case.name, case.patient, np.asarray(case.image).swapaxes(0, 1), label, classes)


def notes_on_blanks(facts: Sequence[Facts]) -> list[str]:
    """Sentences about images of which nothing is left after cropping and scaling."""
    return [
        f"{f.name} is one even surface to the network: its intensities lie outside the range that is shown"
        for f in facts
        if f.blank
    ]


def no_foreground(facts: Sequence[Facts], what: str) -> list[str]:
    """A sentence, if there are labels but none has a voxel of any class but the background.

    Args:
        facts: of the cases.
        what: names the cases, e.g. ``test``.
    """
    labeled = [f.voxels for f in facts if f.voxels is not None]
    if not labeled or any(voxels[1:].any() for voxels in labeled):
        return []
    names = natural_sort({f.patient for f in facts if f.voxels is not None})
    return [
        f"no {what} patient ({', '.join(names)}) has a voxel of any class but the background: draw the classes, or "
        "choose other patients"
    ]


def notes_on_sizes(sized: Mapping[str, bool]) -> list[str]:
    """A sentence about volumes that have no voxel size, which is told of all cases by name."""
    without = [name for name, has_size in sized.items() if not has_size]
    if not without:
        return []
    if len(without) == len(sized):
        return ["no volume has a voxel size (1 x 1 x 1 without a unit): lengths are in voxels"]
    shown = ", ".join(without[:5]) + (f" and {len(without) - 5} more" if len(without) > 5 else "")
    return [
        f"without a voxel size (1 x 1 x 1 without a unit), unlike the others: {shown}; their voxels count as 1 mm, "
        "repair their headers"
    ]


def notes_on_labels(facts: Sequence[Facts], class_names: Sequence[str]) -> list[str]:
    """Sentences about classes that a case lacks."""
    notes = []
    for f in facts:
        if f.voxels is not None and (absent := _absent(f.voxels, class_names)):
            notes.append(f"{f.name} has no voxel of {', '.join(absent)}")
    return notes


def notes_on_learning(facts: Sequence[Facts], class_names: Sequence[str]) -> list[str]:
    """Sentences about what cannot be learned from the labels of these cases: missing classes, empty patients."""
    by_patient: dict[str, np.ndarray] = {}
    for f in facts:
        if f.voxels is not None:
            before = by_patient.get(f.patient)
            by_patient[f.patient] = f.voxels if before is None else before + f.voxels
    if not by_patient:
        return []
    absent = _absent(np.sum(list(by_patient.values()), axis=0), class_names)
    notes = [f"no labelled patient has a voxel of {name}: it cannot be learned" for name in absent]
    for patient in natural_sort(by_patient):
        if not by_patient[patient][1:].any():
            notes.append(f"labelled patient {patient} has no foreground: is the label drawn?")
    return notes


def notes_on_copies(facts: Sequence[Facts], sets: Mapping[str, str] | None = None) -> list[str]:
    """Sentences about scans that are there under several names.

    Args:
        facts: of the cases.
        sets: of every patient the set that it is in, where the data are divided.
    """
    alike: dict[bytes, list[Facts]] = {}
    for f in facts:
        if not f.blank:
            alike.setdefault(f.digest, []).append(f)
    notes = []
    for group in alike.values():
        if len(group) < 2:
            continue
        note = f"{', '.join(f.name for f in group)} are the same scan"
        apart = [] if sets is None else list(dict.fromkeys(sets[f.patient] for f in group))
        if len(apart) > 1:
            note += f", in the sets {' and '.join(apart)}: scores there will be too good"
        elif len({f.patient for f in group}) > 1:
            note += " of several patients"
            note += f", all in the set {apart[0]}" if apart else ": keep one, or put them into one set"
        notes.append(note)
    return notes


def report(
    labeled: Sequence[LoadedCase],
    unlabeled: Sequence[LoadedCase],
    validation: Sequence[LoadedCase],
    test: Sequence[LoadedCase],
    class_names: Sequence[str],
) -> None:
    """Warn about what is odd in the data of a run, as the network will see them.

    Raises:
        InputError: no foreground in all labels of the labelled, the validation or the test patients.
    """
    loaded = {"training": [*labeled, *unlabeled], "validation": validation, "test": test}
    facts = {key: [of_case(case, len(class_names)) for case in cases] for key, cases in loaded.items()}
    every = [f for members in facts.values() for f in members]
    teaching = facts["training"][: len(labeled)]
    problems = []
    for members, what in ((teaching, "labelled"), (facts["validation"], "validation"), (facts["test"], "test")):
        problems += no_foreground(members, what)
    raise_problems(problems, "the data set")
    sets = {f.patient: key for key, members in facts.items() for f in members}
    for note in (
        *notes_on_blanks(every),
        *notes_on_labels(every, class_names),
        *notes_on_learning(teaching, class_names),
        *notes_on_copies(every, sets),
        *notes_on_sizes({case.name: case.volume.sized for members in loaded.values() for case in members}),
    ):
        warnings.warn(note, stacklevel=2)


@contextmanager
def collected(notes: list[str]) -> Iterator[None]:
    """Add the warnings that are meant for the user to ``notes``, each once; others stay warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        if warning.category is not UserWarning:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        elif str(warning.message) not in notes:
            notes.append(str(warning.message))


@contextmanager
def printed() -> Iterator[None]:
    """Print the warnings that are meant for the user as notes; also a decorator."""
    notes: list[str] = []
    with collected(notes):
        yield
    say(notes)


def say(notes: Iterable[str]) -> None:
    """Print notes, a line for each, with one for all files of which the same is to be said."""
    for note in merged(notes):
        print(f"note: {note}")


def merged(notes: Iterable[str]) -> list[str]:
    """The notes with those that say the same of several files as one, which has their number and the first names."""
    files: dict[str, list[str]] = {}
    for note in notes:
        match = _OF_FILE.fullmatch(note)
        files.setdefault(match["sentence"] if match else note, []).extend([match["file"]] if match else [])
    return [_of_files(names, sentence) if names else sentence for sentence, names in files.items()]


_OF_FILE = re.compile(r"(?P<file>.+?\.(?:nii|nii\.gz|h5|hdf5)): (?P<sentence>.+)", re.DOTALL)


def _of_files(names: Sequence[str], sentence: str) -> str:
    distinct = list(dict.fromkeys(names))
    if len(distinct) == 1:
        return f"{distinct[0]}: {sentence}"
    more = f" and {len(distinct) - FIRST} more" if len(distinct) > FIRST else ""
    return f"each of {len(distinct)} files ({', '.join(distinct[:FIRST])}{more}): {sentence}"


def _counts(label: np.ndarray, classes: int) -> np.ndarray:
    """Voxels of each class: much faster than to count all at once, for which each would become an int64."""
    counts: np.ndarray = np.sum(
        [[np.count_nonzero(slice_ == index) for index in range(classes)] for slice_ in label], axis=0
    )
    return counts


def _absent(voxels: np.ndarray, class_names: Sequence[str]) -> list[str]:
    return [name for name, count in zip(class_names, voxels, strict=True) if count == 0]
