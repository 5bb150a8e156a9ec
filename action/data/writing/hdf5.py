"""Writing the HDF5 layout of the public benchmark of semi-supervised learning."""

from __future__ import annotations

from pathlib import Path

from action.data.cases import Case
from action.data.hdf5 import write
from action.data.reading import read_channels, read_label
from action.data.writing.base import Writer, put_classes
from action.data.writing.contents import Contents


class Hdf5Writer(Writer):
    """Writes ``data/slices/CASE_slice_N.h5`` of training cases, ``data/CASE.h5`` of others, and the lists.

    Without sets every case is a volume, and there are no lists. Voxel sizes and places are lost.
    """

    def write(self, root: Path, contents: Contents) -> None:
        """See ``Writer.write``."""
        lists: dict[str, list[str]] = {"train_slices": [], "val": [], "test": []}
        (root / "data" / "slices").mkdir(parents=True)
        classes, training = len(contents.class_names), {case.name for case in contents.members("train")}
        slices: dict[str, list[str]] = {}
        for case in contents.cases:
            if contents.divided and case.name in training:
                slices[case.name] = _put_slices(root / "data" / "slices", case, classes)
            else:
                _put_volume(root / "data" / f"{case.name}.h5", case, classes)
        put_classes(root, contents)
        if not contents.divided:
            (root / "data" / "slices").rmdir()
            return
        lists["train_slices"] = [name for case in contents.members("train") for name in slices[case.name]]
        lists["val"] = [case.name for case in contents.members("validation")]
        lists["test"] = [case.name for case in contents.members("test")]
        for key, names in lists.items():
            (root / f"{key}.list").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


WRITER: Writer = Hdf5Writer()


def _put_volume(path: Path, case: Case, classes: int) -> None:
    image = next(read_channels(case))
    write(path, image.array, read_label(case, image, classes))


def _put_slices(folder: Path, case: Case, classes: int) -> list[str]:
    """Write a file for each slice; their names without suffix."""
    image = next(read_channels(case))
    label = read_label(case, image, classes)
    names = [f"{case.name}_slice_{z + 1}" for z in range(len(image.array))]
    for z, name in enumerate(names):
        write(folder / f"{name}.h5", image.array[z], None if label is None else label[z])
    return names
