"""The scale at which a network sees slices: one pixel size for all, so that nothing is squeezed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from action.data.cases import Case, raise_problems
from action.data.nifti import Grid
from action.data.orientation import common_axes
from action.data.reading import read_grid
from action.errors import InputError

STEP, LARGEST = 32, 256
"""Chosen sizes are multiples of what the network's levels and windows divide, up to what a small machine trains."""
MOST_PIXELS = 8192
"""Sides of a resampled slice, more than any scanner's: beyond it a spacing is wrong."""

Spacing = tuple[float, float]
Size = tuple[int, int]


def choose_scale(cases: Sequence[Case], spacing: Spacing | None, size: Size | None) -> tuple[Spacing, Size]:
    """What is open of pixel size (mm) and patch (pixels), height and width, from the headers of the training volumes.

    The pixel is the median one; the patch holds the median slice at the pixel size, in steps of ``STEP`` up to
    ``LARGEST``.

    Raises:
        InputError: every file whose header cannot be read.
    """
    grids: list[Grid] = []
    problems: list[str] = []
    for case in cases:
        try:
            grids.append(read_grid(case))
        except InputError as error:
            problems.append(str(error))
    raise_problems(problems, "the training data")
    _, turns = common_axes([grid.directions for grid in grids])
    turned = list(zip(turns, grids, strict=True))
    spacings = np.array([turn.sizes(grid.spacing)[1:] for turn, grid in turned])
    extents = spacings * [turn.sizes(grid.shape)[1:] for turn, grid in turned]  # mm
    if spacing is None:
        height, width = np.median(spacings, axis=0)
        spacing = round(float(height), 6), round(float(width), 6)  # headers are in single precision
    if size is None:
        rows, columns = np.median(extents / spacing, axis=0)
        size = _in_steps(rows), _in_steps(columns)
    return spacing, size


def pixels(extent: int, spacing: float, wanted: float) -> int:
    """Pixels of ``wanted`` mm that ``extent`` voxels of ``spacing`` mm become, at least one.

    Raises:
        InputError: more than ``MOST_PIXELS``.
    """
    count = max(1, round(extent * spacing / wanted))
    if count > MOST_PIXELS:
        raise InputError(
            f"{extent} voxels of {spacing:g} mm become {count} pixels of input.spacing {wanted:g} mm, more than "
            f"{MOST_PIXELS}: correct the voxel size in its header, or choose a larger input.spacing"
        )
    return count


def _in_steps(extent: float) -> int:
    return min(LARGEST, STEP * math.ceil(round(extent, 3) / STEP))
