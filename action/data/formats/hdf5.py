"""The HDF5 layout of the public benchmark of semi-supervised learning: training slices, other volumes, three lists."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from action.data.cases import Case, Format, Sets, natural_key, patient_of, patients_of, raise_problems
from action.data.folders import dangling, entries
from action.data.hdf5 import has_label, is_hdf5
from action.data.text import read_text
from action.errors import InputError

LISTS = {"train": "train_slices.list", "validation": "val.list", "test": "test.list"}


class Hdf5(Format):
    """``data/CASE.h5``, ``data/slices/CASE_slice_N.h5``, ``train_slices.list``, ``val.list``, ``test.list``.

    The lists name what is read, a file's name without its suffix in each line: slices for the training, whole volumes
    for validation and test. Without lists every volume is read, and those of which there are slices alone. Slices may
    lie in ``data`` as well. ``patient001_frame01`` and ``patient001_frame02`` are one patient. The default class names
    are those of ACDC, from which the benchmark is made.
    """

    looks_for = "data/CASE.h5, data/slices/CASE_slice_N.h5, train_slices.list, val.list, test.list"
    class_names: tuple[str, ...] = ("background", "right ventricle", "myocardium", "left ventricle")

    def recognises(self, root: Path) -> bool:
        """A list or a file of HDF5. See ``Format.recognises``."""
        return any((root / name).is_file() for name in LISTS.values()) or bool(_files(root, []))

    def find_cases(self, root: Path) -> list[Case]:
        """Those that the lists name, or all. See ``Format.find_cases``."""
        problems: list[str] = []
        files = _files(root, problems)
        if not files and not problems:
            raise InputError(f"no patients in {root}: expected files data/CASE.h5 (format 'hdf5')")
        lists = _read_lists(root)
        if lists is None:
            volumes = {name: [path] for name, path in files.items() if _slice(name) is None}
            parts = _joined([name for name in files if _slice(name)], files, str(root), problems)
            found = parts | volumes
        else:
            found = _joined(lists["train"], files, f"{root / LISTS['train']}", problems)
            for key in ("validation", "test"):
                for name in lists[key]:
                    if name not in files:
                        problems.append(f"{root / LISTS[key]} names {name}, but there is no data/{name}.h5: add it")
                    elif name in found:
                        problems.append(f"{root / LISTS[key]} names {name}, which another list names: take one out")
                    else:
                        found[name] = [files[name]]
        raise_problems(problems, str(root))
        return [_case(name, found[name]) for name in sorted(found, key=natural_key)]

    def find_sets(self, root: Path, cases: Sequence[Case], fold: int) -> Sets:
        """Those of the lists. See ``Format.find_sets``."""
        super().find_sets(root, cases, fold)
        lists = _read_lists(root)
        if lists is None:
            return Sets()
        lists["train"] = [place[0] for name in lists["train"] if (place := _slice(name))]
        train, validation, test = (patients_of(lists[key], cases, f"{root / LISTS[key]}") for key in LISTS)
        return Sets(train, validation, test, f"{root / LISTS['train']}")


FORMAT: Format = Hdf5()


def _case(name: str, files: Sequence[Path]) -> Case:
    return Case(name, patient_of(name), files[0], files[0] if has_label(files[0]) else None, tuple(files[1:]))


def _files(root: Path, problems: list[str]) -> dict[str, Path]:
    """The HDF5 files of a data set by their names without suffix."""
    found: dict[str, Path] = {}
    for folder in (root / "data", root / "data" / "slices"):
        for path in entries(folder) if folder.is_dir() else ():
            if not is_hdf5(path):
                continue
            if (problem := dangling(path)) is not None:
                problems.append(problem)
            elif path.stem in found:
                problems.append(f"{found[path.stem]} and {path} are both there: remove one")
            else:
                found[path.stem] = path
    return found


def _slice(name: str) -> tuple[str, int] | None:
    """Case and number of a slice, by its name."""
    match = re.fullmatch(r"(.+)_slice_(\d+)", name)
    return (match[1], int(match[2])) if match else None


def _joined(names: Sequence[str], files: Mapping[str, Path], source: str, problems: list[str]) -> dict[str, list[Path]]:
    """The files of the cases of these slices, in the order of their numbers; names of no slice are problems."""
    numbered: dict[str, dict[int, Path]] = {}
    for name in names:
        if (place := _slice(name)) is None:
            problems.append(f"{source} names {name}, which is no slice: write CASE_slice_N")
        elif name not in files:
            problems.append(f"{source} names {name}, but there is no data/slices/{name}.h5: add it")
        else:
            numbered.setdefault(place[0], {})[place[1]] = files[name]
    return {case: [paths[number] for number in sorted(paths)] for case, paths in numbered.items()}


def _read_lists(root: Path) -> dict[str, list[str]] | None:
    """The names in each list; ``None`` without lists. The test set may have none.

    Raises:
        InputError: one of the other two lists is missing or empty.
    """
    lists: dict[str, list[str]] = {}
    for key, file in LISTS.items():
        path = root / file
        if (problem := dangling(path)) is not None:
            raise InputError(problem)
        lines = read_text(path).splitlines() if path.is_file() else []
        lists[key] = [line.strip().removesuffix(".h5") for line in lines if line.strip()]
    if not any((root / file).is_file() for file in LISTS.values()):
        return None
    for key in ("train", "validation"):
        if not lists[key]:
            raise InputError(
                f"{root / LISTS[key]} is missing or empty, but there are other lists: name the files of the set in it"
            )
    return lists
