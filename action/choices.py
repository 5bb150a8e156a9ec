"""What the settings choose from, by name: the registries themselves say what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from jsonargparse.typing import restricted_string_type

from action.data.crops import CROPS
from action.data.formats import FORMATS
from action.data.intensities import INTENSITIES
from action.data.mixing import MIXES
from action.data.writing import WRITERS
from action.loggers import LOGGERS
from action.own import PATTERN, is_own

METHODS: dict[str, tuple[str, ...]] = {
    "action": ("global_distillation", "local_distillation", "anatomical_contrast"),
    "pseudo-labels": ("pseudo_labels",),
    "copy-paste": ("copy_paste",),
    "unimatch": ("unimatch",),
    "mean-teacher": ("mean_teacher",),
    "supervised": ("supervised",),
}
"""The stages of each method, in order: the names of their files in ``action/stages``."""

SETTINGS: dict[str, tuple[str, ...]] = {
    "action": METHODS["action"],
    "pseudo-labels": ("baseline", "anatomical_contrast"),
    "copy-paste": ("baseline", "copy_paste"),
    "unimatch": ("baseline", "unimatch"),
    "mean-teacher": ("baseline",),
    "supervised": ("baseline",),
}
"""The groups of settings that a method reads, beside those that all methods read."""


def settings_of(method: str) -> tuple[str, ...]:
    """The groups of settings that a method reads; a class of the user's may read all of them."""
    every = dict.fromkeys(group for groups in SETTINGS.values() for group in groups)
    return tuple(every) if is_own(method) else SETTINGS[method]


if TYPE_CHECKING:  # any name for the type checker, those that there are for the command line
    CropName = str
    FormatName = str
    IntensityName = str
    LoggerName = str
    MethodName = str
    MixName = str
    WriterName = str
else:
    CropName = Literal[tuple(CROPS)]
    OwnClass = restricted_string_type("OwnClass", f"^{PATTERN}$")
    FormatName = Literal[("auto", *FORMATS)] | OwnClass
    IntensityName = Literal[("auto", *INTENSITIES)]
    LoggerName = Literal[tuple(LOGGERS)]
    MethodName = Literal[tuple(METHODS)] | OwnClass
    MixName = Literal[tuple(MIXES)]
    WriterName = Literal[tuple(WRITERS)]
