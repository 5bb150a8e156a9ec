"""What the settings choose from, by name: the registries themselves say what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from action.data.crops import CROPS
from action.data.formats import FORMATS
from action.data.intensities import INTENSITIES
from action.data.mixing import MIXES
from action.data.writing import WRITERS

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

if TYPE_CHECKING:  # any name for the type checker, those that there are for the command line
    CropName = str
    FormatName = str
    IntensityName = str
    MethodName = str
    MixName = str
    WriterName = str
else:
    CropName = Literal[tuple(CROPS)]
    FormatName = Literal[("auto", *FORMATS)]
    IntensityName = Literal[("auto", *INTENSITIES)]
    MethodName = Literal[tuple(METHODS)]
    MixName = Literal[tuple(MIXES)]
    WriterName = Literal[tuple(WRITERS)]
