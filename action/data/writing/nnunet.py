"""Writing nnU-Net's raw layout."""

from __future__ import annotations

from pathlib import Path

from action.data.cases import Case
from action.data.reading import channels_of
from action.data.writing.base import END, Writer, put_image, put_json, put_label
from action.data.writing.contents import Contents


class NnUnetWriter(Writer):
    """Writes ``imagesTr``, ``labelsTr``, ``imagesTs``, ``labelsTs``, ``dataset.json``, ``splits_final.json``.

    A case without a label lies in ``imagesUn``, and no list names it.
    """

    channels = True

    def write(self, root: Path, contents: Contents) -> None:
        """See ``Writer.write``."""
        tests = {case.name for case in contents.members("test")}
        classes, placed = len(contents.class_names), {"Tr": 0, "Un": 0, "Ts": 0}
        for case in contents.cases:
            place = "Un" if case.label is None else "Ts" if case.name in tests else "Tr"
            placed[place] += 1
            for channel in range(channels_of(case)):
                put_image(case, channel, root / f"images{place}" / f"{case.name}_{channel:04d}{END}")
            put_label(case, classes, root / f"labels{place}" / f"{case.name}{END}")
        (root / "imagesTr").mkdir(exist_ok=True)  # by which the layout is known
        count = channels_of(contents.cases[0])
        description = {
            "channel_names": {str(index): f"channel {index}" for index in range(count)},
            "labels": {name: index for index, name in enumerate(contents.class_names)},
            "numTraining": placed["Tr"],
            "file_ending": END,
        }
        put_json(description, root / "dataset.json")
        if contents.divided:
            fold = {"train": _named(contents.members("train")), "val": _named(contents.members("validation"))}
            put_json([fold], root / "splits_final.json")


WRITER: Writer = NnUnetWriter()


def _named(cases: list[Case]) -> list[str]:
    return [case.name for case in cases if case.label is not None]
