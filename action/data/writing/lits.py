"""Writing the LiTS layout."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from action.data.cases import Case
from action.data.writing.base import END, Writer, put_classes, put_image, put_label, put_split
from action.data.writing.contents import Contents, Name


class LitsWriter(Writer):
    """Writes ``volume-N.nii.gz``, ``segmentation-N.nii.gz``, ``dataset.json``, ``split.json``.

    Cases of other names are numbered from 0 in their order. The layout knows no patients: of several cases each becomes
    one, and only ``split.json`` keeps them in one set.
    """

    def names(self, cases: Sequence[Case]) -> dict[str, Name]:
        """See ``Writer.names``."""
        if all(re.fullmatch(r"volume-\d+", case.name) for case in cases):
            return {case.name: Name(case.name, case.name) for case in cases}
        return {case.name: Name(f"volume-{index}", f"volume-{index}") for index, case in enumerate(cases)}

    def write(self, root: Path, contents: Contents) -> None:
        """See ``Writer.write``."""
        for case in contents.cases:
            put_image(case, 0, root / f"{case.name}{END}")
            segmentation = case.name.replace("volume", "segmentation")
            put_label(case, len(contents.class_names), root / f"{segmentation}{END}")
        put_classes(root, contents)
        put_split(root, contents)


WRITER: Writer = LitsWriter()
