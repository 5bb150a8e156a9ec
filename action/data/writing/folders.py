"""Writing a folder of images and a folder of labels."""

from __future__ import annotations

from pathlib import Path

from action.data.writing.base import END, Writer, put_classes, put_image, put_label, put_split
from action.data.writing.contents import Contents


class FoldersWriter(Writer):
    """Writes ``images/CASE.nii.gz``, ``labels/CASE.nii.gz``, ``dataset.json``, ``split.json``."""

    def write(self, root: Path, contents: Contents) -> None:
        """See ``Writer.write``."""
        for case in contents.cases:
            put_image(case, 0, root / "images" / f"{case.name}{END}")
            put_label(case, len(contents.class_names), root / "labels" / f"{case.name}{END}")
        put_classes(root, contents)
        put_split(root, contents)


WRITER: Writer = FoldersWriter()
