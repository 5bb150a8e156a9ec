"""Cases to be looked through slice by slice: image, truth and prediction, packed into two pictures a case."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from action.data import nifti
from action.data.orientation import Turn
from action.data.volumes import LoadedCase, native_slice
from action.metrics import dice_scores
from action.pages.page import number

SIDE = 256
"""Pixels of the longer side of what is shown."""
SLICES = 48
"""Of a case at most: evenly spaced, where more have foreground."""
MARGIN = 0.3
"""Around the foreground of truth and prediction, as a share of its extent."""
QUALITY = 70  # of the pictures' lossy compression


def read_prediction(path: Path, case: LoadedCase, classes: int) -> np.ndarray:
    """Class indices [Z, Y, X] of a prediction that was written for a case, turned as the case is.

    Raises:
        InputError: the file cannot be read, is on another grid, or has other classes.
    """
    turn = case.volume.turn
    grid = replace(case.volume, array=turn.undo(np.zeros(case.shape, np.uint8)), turn=Turn())
    return turn.apply(nifti.read_label(path, grid, classes).array)


def viewed(case: LoadedCase, prediction: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """What the page's script needs of a case.

    Args:
        case: with its truth.
        prediction: class indices [Z, Y, X], as the truth's.
        class_names: background first.
    """
    truth = case.required_truth
    slices, rows, columns = _box((truth > 0) | (prediction > 0))
    shown = list(_spaced(slices))
    size = _size((rows.stop - rows.start, columns.stop - columns.start), case.spacing[1:])
    images = np.stack([native_slice(case, z)[rows, columns] for z in shown])
    low, high = np.percentile(images, (0.5, 99.5))
    gray = (np.clip((images - low) / max(high - low, 1e-6), 0, 1) * 255).round().astype(np.uint8)
    pictures = [Image.fromarray(image).resize(size, Image.Resampling.BILINEAR) for image in gray]
    labels = [_both(truth[z, rows, columns], prediction[z, rows, columns], size) for z in shown]
    texts = []
    for z in shown:
        dice = dice_scores(prediction[z : z + 1], truth[z : z + 1], len(class_names))
        texts.append(", ".join(f"{n} {number(float(d))}" for n, d in zip(class_names[1:], dice, strict=True)))
    return {
        "size": size,
        "columns": ceil(sqrt(len(shown))),
        "slices": [z + 1 for z in shown],
        "first": int(np.argmax([np.count_nonzero(truth[z]) for z in shown])),  # the slice to begin with
        "total": len(truth),
        "dice": texts,
        "image": _uri(_packed(pictures), "webp", quality=QUALITY, method=4),
        "labels": _uri(_packed(labels), "png", optimize=True),
    }


def _box(foreground: np.ndarray) -> tuple[slice, slice, slice]:
    """The part that holds the foreground with a margin; all of the volume without any."""
    parts = []
    for axis in range(3):
        there = np.flatnonzero(foreground.any(axis=tuple(a for a in range(3) if a != axis)))
        extent = foreground.shape[axis]
        if not len(there):
            parts.append(slice(0, extent))
            continue
        margin = 1 if axis == 0 else max(8, ceil(MARGIN * (there[-1] + 1 - there[0])))
        parts.append(slice(max(int(there[0]) - margin, 0), min(int(there[-1]) + 1 + margin, extent)))
    return parts[0], parts[1], parts[2]


def _spaced(slices: slice) -> Iterator[int]:
    count = slices.stop - slices.start
    yield from np.unique(np.linspace(slices.start, slices.stop - 1, min(count, SLICES)).round().astype(int)).tolist()


def _size(shape: tuple[int, int], spacing: tuple[float, float]) -> tuple[int, int]:
    """Width and height of pictures with square pixels, in voxels or fewer."""
    height, width = shape[0] * spacing[0], shape[1] * spacing[1]
    pixel = max(min(spacing), max(height, width) / SIDE)
    return max(round(width / pixel), 1), max(round(height / pixel), 1)


def _both(truth: np.ndarray, prediction: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A picture whose red is the truth's class and whose green is the prediction's."""
    pair = np.stack([truth, prediction, np.zeros_like(truth)], axis=-1).astype(np.uint8)
    return Image.fromarray(pair).resize(size, Image.Resampling.NEAREST)


def _packed(pictures: Sequence[Image.Image]) -> Image.Image:
    """All pictures in one, row by row."""
    columns, (width, height) = ceil(sqrt(len(pictures))), pictures[0].size
    packed = Image.new(pictures[0].mode, (columns * width, ceil(len(pictures) / columns) * height))
    for i, picture in enumerate(pictures):
        packed.paste(picture, (i % columns * width, i // columns * height))
    return packed


def _uri(picture: Image.Image, form: str, **options: Any) -> str:
    buffer = BytesIO()
    picture.save(buffer, form, **options)
    return f"data:image/{form};base64,{b64encode(buffer.getvalue()).decode()}"
