"""Which part of the slices the network is shown. A way of cropping is a function in ``CROPS``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from action.errors import InputError

BODY_HU = -300.0
"""Between air and lung below it, fat and tissue above."""

Box = tuple[slice, slice]
"""Rows and columns of a slice."""


def whole(array: np.ndarray, aspect: float) -> Box:
    """All of every slice."""
    return slice(0, array.shape[1]), slice(0, array.shape[2])


def body(array: np.ndarray, aspect: float) -> Box:
    """The part of the slices that holds the body in a CT.

    Args:
        array: [Z, Y, X] in Hounsfield units.
        aspect: height / width to widen the part to, as far as the slices reach.

    Returns:
        Rows and columns around the largest connected piece (a table under the patient is another) above -300 HU.

    Raises:
        InputError: no voxel is air.
    """
    if (low := array.min()) > BODY_HU:
        raise InputError(
            f"no voxel is air in Hounsfield units (the lowest is {low:g}), so input.crop=body finds no body: use "
            "input.crop=none"
        )
    return find_body(array, aspect)


def find_body(array: np.ndarray, aspect: float) -> Box:
    """As ``body``; whole slices if nothing is above -300 HU."""
    pieces, count = ndimage.label(array > BODY_HU)
    if count == 0:
        return whole(array, aspect)
    largest = int(np.bincount(pieces.ravel())[1:].argmax())
    _, rows, columns = ndimage.find_objects(pieces)[largest]
    height, width = rows.stop - rows.start, columns.stop - columns.start
    height, width = max(height, round(width * aspect)), max(width, round(height / aspect))
    return _widened(rows, height, array.shape[1]), _widened(columns, width, array.shape[2])


CROPS: dict[str, Callable[[np.ndarray, float], Box]] = {"none": whole, "body": body}
"""The known crops by the name that ``input.crop`` takes: of a volume [Z, Y, X] and the height / width of the input."""


def _widened(part: slice, extent: int, limit: int) -> slice:
    """``part`` with ``extent`` about the same centre, moved and cut to lie within 0 and ``limit``."""
    extent = min(extent, limit)
    start = min(max((part.start + part.stop - extent) // 2, 0), limit - extent)
    return slice(start, start + extent)
