"""Opening a data folder: its cases, by its format, and the names of its classes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from action.data.cases import Case, Sets, natural_sort
from action.data.folders import dangling, entries
from action.data.formats import FORMATS, format_named
from action.data.text import read_json
from action.errors import InputError

AUTO = "auto"
"""In the place of a format: whatever is recognised."""
MAX_CLASSES = 256
"""Labels are stored in a byte."""


@dataclass(frozen=True)
class Dataset:
    """What is found under a data folder: cases in natural order, names of the classes (0 = background), the format."""

    root: Path
    cases: list[Case]
    class_names: tuple[str, ...]
    format: str

    @property
    def patients(self) -> list[str]:
        """Patient names in natural order."""
        return natural_sort({case.patient for case in self.cases})

    @property
    def split_file(self) -> Path | None:
        """``split.json`` in the data folder, which prescribes the split, or ``None`` where there is none.

        Raises:
            InputError: it is a link whose target is missing.
        """
        return _optional(self.root / "split.json")

    def count_folds(self) -> int:
        """How many folds the layout's own lists prescribe. See ``Format.count_folds``."""
        return format_named(self.format).count_folds(self.root)

    def find_sets(self, fold: int) -> Sets:
        """The sets that the layout's own lists prescribe. See ``Format.find_sets``."""
        return format_named(self.format).find_sets(self.root, self.cases, fold)


def open_dataset(root: Path | str, format: str) -> Dataset:
    """List the cases under ``root``, whose layout "auto" recognises.

    Class names are those of the format, unless ``dataset.json`` or ``manifest.json`` in ``root`` has a list
    ``classes``, or ``dataset.json`` maps ``labels`` as nnU-Net does: names to values, or in the older form values to
    names.

    Raises:
        InputError: unknown format, missing folder, no case, missing files, or unusable class names.
    """
    named = None if format == AUTO else format_named(format)
    root = Path(root)
    if (problem := dangling(root)) is not None:
        raise InputError(problem)
    if not root.is_dir():
        raise InputError(f"data folder {root} {'is not a folder' if root.exists() else 'does not exist'}")
    format = recognise(root) if named is None else format
    layout = named or FORMATS[format]
    cases = layout.find_cases(root)
    return Dataset(root, cases, _read_class_names(root) or layout.find_class_names(root, cases), format)


def recognise(root: Path) -> str:
    """The format of a folder.

    Raises:
        InputError: it looks like none, or like several.
    """
    known = [name for name, layout in FORMATS.items() if layout.recognises(root)]
    if len(known) == 1:
        return known[0]
    listed = "\n".join(f"  - {name}: {layout.looks_for}" for name, layout in FORMATS.items())
    if known:
        raise InputError(f"{root} looks like {' and like '.join(known)}: say which with --format\n{listed}")
    near = "".join(f"{folder} looks like {name}: is it meant? " for folder, name in _near(root))
    if any(root.rglob("*.dcm")):
        near += "It holds DICOM files: convert them to NIfTI first, with dcm2niix for instance. "
    raise InputError(f"no patients in {root} that any format would find. {near}What each looks for:\n{listed}")


def _near(root: Path) -> list[tuple[Path, str]]:
    """Folders that may have been meant, and their formats: around a part of a data set, else below."""
    part = root.name.startswith(("images", "labels"))
    folders = [root.resolve().parent] if part else [path for path in entries(root) if path.is_dir()]
    found = ((folder, name) for folder in folders for name, layout in FORMATS.items() if layout.recognises(folder))
    return list(islice(found, 3))


def _optional(path: Path) -> Path | None:
    """``path``, or ``None`` where there is no such file."""
    if (problem := dangling(path)) is not None:
        raise InputError(problem)
    return path if path.is_file() else None


def _read_class_names(root: Path) -> tuple[str, ...] | None:
    for name in ("dataset.json", "manifest.json"):
        path = _optional(root / name)
        if path is None:
            continue
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is not readable JSON ({error}): repair or remove it") from error
        if not isinstance(content, dict):
            continue
        if content.get("classes") is not None:
            return _from_list(path, content["classes"])
        if name == "dataset.json" and content.get("labels") is not None:
            return _from_labels(path, content["labels"])
    return None


def _from_list(path: Path, names: Any) -> tuple[str, ...]:
    usable = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    if not usable or not 2 <= len(names) <= MAX_CLASSES or len(set(names)) < len(names):
        raise InputError(f"{path}: 'classes' is {names!r}; it must list distinct names, the background first")
    return tuple(names)


def _from_labels(path: Path, labels: Any) -> tuple[str, ...]:
    """Class names of nnU-Net's ``{"background": 0, "liver": 1}``, or of ``{"0": "background", "1": "liver"}``."""
    remedy = "list the names of the classes under 'classes', the background first"
    if not isinstance(labels, dict):
        raise InputError(f"{path}: 'labels' is {labels!r}; it must map names to values, or {remedy}")
    if all(re.fullmatch(r"[0-9]+", key) and isinstance(value, str) for key, value in labels.items()):
        values = {name: int(key) for key, name in labels.items()}
    else:
        values = labels
    regions = [name for name, value in values.items() if isinstance(value, list)]
    if regions:
        raise InputError(
            f"{path}: 'labels' joins values to regions ({', '.join(regions)}), but every class here has one value: "
            f"{remedy}"
        )
    if "ignore" in values:
        raise InputError(
            f"{path}: 'labels' has 'ignore' ({values['ignore']}), but no voxel can be left out here: give those voxels "
            f"a class, and {remedy}"
        )
    whole = all(type(value) is int for value in values.values())
    in_order = whole and len(values) == len(labels) and sorted(values.values()) == list(range(len(values)))
    if not in_order or not 2 <= len(values) <= MAX_CLASSES or not all(values) or values.get("background", 0) != 0:
        raise InputError(
            f"{path}: 'labels' is {labels!r}; the values must be 0, 1, 2, ... without gaps, each with a name of its "
            f"own, 0 the background, or {remedy}"
        )
    return tuple(sorted(values, key=values.__getitem__))
