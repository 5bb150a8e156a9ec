"""Which part of the slices the network is shown. A way of cropping is a function in ``CROPS``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from action.errors import InputError

BODY_HU = -300
"""Between air and lung below it, fat and tissue above."""

Box = tuple[slice, slice]
"""Rows and columns of a slice."""


def whole(array: np.ndarray) -> Box:
    """All of every slice."""
    return slice(0, array.shape[1]), slice(0, array.shape[2])


def body(array: np.ndarray) -> Box:
    """The part of the slices that holds the body in a CT.

    Args:
        array: [Z, Y, X] in Hounsfield units.

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
    return find_body(array)


def find_body(array: np.ndarray) -> Box:
    """As ``body``; whole slices if nothing is above -300 HU."""
    pieces, count = ndimage.label(array > BODY_HU)
    if count == 0:
        return whole(array)
    largest = int(np.bincount(pieces.ravel())[1:].argmax())
    _, rows, columns = ndimage.find_objects(pieces)[largest]
    return rows, columns


CROPS: dict[str, Callable[[np.ndarray], Box]] = {"none": whole, "body": body}
"""The known crops of a volume [Z, Y, X] by the name that ``input.crop`` takes."""
