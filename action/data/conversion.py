"""Converting data sets from one layout to another."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from action.data.cases import raise_problems
from action.data.dataset import Dataset, open_dataset
from action.data.hdf5 import is_hdf5
from action.data.reading import channels_of
from action.data.writing import WRITERS
from action.data.writing.base import put_json
from action.data.writing.contents import contents_of
from action.errors import InputError
from action.files import aside_of, check_writable, flush_folder, remove_abandoned


def convert(dataset: Dataset, target: Path, to: str) -> list[str]:
    """Write a data set in another layout, aside and then renamed, so that ``target`` is whole or not there.

    NIfTI files stay as they are, but for being compressed. Cases whose names the layout does not allow get others,
    which ``names.json`` lists.

    Args:
        dataset: what is converted; nothing of it is changed.
        target: folder to write; it must not exist, or be empty.
        to: a name in ``WRITERS``.

    Returns:
        Sentences about what the other layout does not keep.

    Raises:
        InputError: the same layout, a target that is there or lies in the data set, several channels where the layout
            holds one, or a file that cannot be read.
    """
    _check_target(dataset, target, to)
    writer = WRITERS[to]
    if not writer.channels:
        raise_problems(
            [
                f"{case.name} has {channels_of(case)} channels, but the format {to} holds one: convert to nnunet"
                for case in dataset.cases
                if channels_of(case) > 1
            ][:1],
            str(dataset.root),
        )
    contents = contents_of(dataset)
    names = writer.names(contents.cases)
    renamed = {new.case: old for old, new in names.items() if new.case != old}
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target.parent, target.name.__eq__)
    aside = aside_of(target)
    try:
        aside.mkdir()
        writer.write(aside, contents.renamed(names))
        if renamed:
            put_json(renamed, aside / "names.json")
        open_dataset(aside, to)  # what cannot be read again is not left there
        os.replace(aside, target)
        flush_folder(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    notes = []
    if renamed:
        notes.append(
            f"the format {to} has other names: {target / 'names.json'} lists them with those of {dataset.root}"
        )
    if len(patients := {new.patient for new in names.values()}) != len(dataset.patients):
        notes.append(
            f"the format {to} knows no patients, so that {len(dataset.patients)} have become {len(patients)}: keep all "
            "cases of one in one set"
        )
    if to == "hdf5" and not is_hdf5(dataset.cases[0].image):
        notes.append("HDF5 files hold no voxel size: lengths are in voxels")
    if not contents.divided and contents.sets.test and to != "nnunet":
        notes.append(f"which patients test is not kept ({', '.join(contents.sets.test)}): name all sets in split.json")
    return notes


def _check_target(dataset: Dataset, target: Path, to: str) -> None:
    if to == dataset.format:
        raise InputError(f"{dataset.root} has the format {to} already: copy it, or choose another --to")
    if target.resolve().is_relative_to(dataset.root.resolve()):
        raise InputError(f"{target} lies in the data set that is converted: choose another folder")
    there = target.exists() or target.is_symlink()
    if there and not (target.is_dir() and not target.is_symlink() and not any(target.iterdir())):
        raise InputError(f"{target} exists, and nothing is ever overwritten: choose another folder, or remove it")
    check_writable(target.parent, "the new folder", target)
