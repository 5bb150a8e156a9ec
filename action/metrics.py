"""Overlap and surface distance of segmentations in 3-D, with every empty case accounted for.

Distances are in millimetres, or in voxels where the files have no voxel size.

A class in neither the truth nor the prediction is ``empty``: nothing can be measured, and it counts towards no mean (as
in nnU-Net and MONAI); such cases are counted beside the means. A class in one of them alone is a ``miss``: Dice and
Jaccard 0, distances infinite, so that they have no mean; misses are counted beside the means of the finite distances
and never dropped. Measures that are not applicable or infinite are ``None``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import find_objects
from torch import Tensor

Spacing = tuple[float, float, float]
"""Voxel size (z, y, x) in mm, or 1 where there is none."""
ClassValues = dict[str, float | None]
"""The measures of a class in a volume, by name, and whether it is a ``miss`` or ``empty``."""
Compute = Callable[[Tensor, Tensor, Spacing], float]
"""Takes the masks of prediction and truth, bool [1, 1, Z, Y, X], neither of them empty, and the spacing."""


@dataclass(frozen=True)
class Measure:
    """How a class in a volume is measured.

    Args:
        compute: the function.
        title: head of its column in the table, without the unit.
        digits: decimals there.
        on_miss: its value for a miss.
        distance: whether it has a unit.
    """

    compute: Compute
    title: str
    digits: int
    on_miss: float | None
    distance: bool = False


MEASURES: dict[str, Measure] = {}
"""The known measures by their names in ``summary.json``, in the order of the table."""


def measure(title: str, digits: int, on_miss: float | None, distance: bool = False) -> Callable[[Compute], Compute]:
    """Decorator: lists a function in ``MEASURES`` under its name; see ``Measure``."""

    def listed(compute: Compute) -> Compute:
        MEASURES[compute.__name__] = Measure(compute, title, digits, on_miss, distance)
        return compute

    return listed


@measure("Dice", digits=3, on_miss=0.0)
def dice(prediction: Tensor, truth: Tensor, spacing: Spacing) -> float:
    """2 |P and T| / (|P| + |T|)."""
    from monai.metrics import compute_dice  # here, for it takes a second to load

    return float(compute_dice(prediction, truth, include_background=True))


@measure("Jaccard", digits=3, on_miss=0.0)
def jaccard(prediction: Tensor, truth: Tensor, spacing: Spacing) -> float:
    """|P and T| / |P or T|."""
    from monai.metrics import compute_iou  # here, for it takes a second to load

    return float(compute_iou(prediction, truth, include_background=True))


@measure("ASD", digits=2, on_miss=None, distance=True)
def asd(prediction: Tensor, truth: Tensor, spacing: Spacing) -> float:
    """Mean distance of the surface voxels of both, each to the other surface.

    A voxel is of the surface if one of its six neighbours is outside the structure, or outside the volume. All count
    alike, whatever the area that they stand for; surface-distance weights corners of voxels by area.
    """
    from monai.metrics import compute_average_surface_distance  # here, for it takes a second to load

    distance = compute_average_surface_distance(
        prediction, truth, symmetric=True, spacing=spacing, include_background=True
    )
    return float(distance)


@measure("HD95", digits=2, on_miss=None, distance=True)
def hd95(prediction: Tensor, truth: Tensor, spacing: Spacing) -> float:
    """The larger of both directions' 95th percentiles of the surface distance, interpolated linearly.

    Surfaces are as in ``asd``: every voxel counts alike.
    """
    from monai.metrics import compute_hausdorff_distance  # here, for it takes a second to load

    distance = compute_hausdorff_distance(prediction, truth, percentile=95, spacing=spacing, include_background=True)
    return float(distance)


def dice_scores(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Dice of the classes 1 to ``classes`` - 1 of one volume, float64 [classes - 1]; empty NaN, miss 0.

    Args:
        prediction: class indices [Z, Y, X].
        truth: class indices [Z, Y, X].
        classes: number of classes, background included.
    """
    pairs = confusion(prediction, truth, classes)
    both, size = np.diag(pairs)[1:], (pairs.sum(0) + pairs.sum(1))[1:]
    return np.where(size > 0, 2 * both / np.maximum(size, 1), np.nan)


def confusion(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Voxels of one volume by their class in the truth (rows) and in the prediction, int64 [classes, classes].

    Args:
        prediction: class indices [Z, Y, X].
        truth: class indices [Z, Y, X].
        classes: number of classes, background included.
    """
    _check(prediction, truth)
    pairs = np.bincount(classes * truth.ravel().astype(np.int64) + prediction.ravel(), minlength=classes**2)
    return pairs.reshape(classes, classes)


def mean_scores(scores: Sequence[np.ndarray]) -> tuple[list[float | None], float | None]:
    """Mean over cases for each class, and the mean of those; NaN scores are left out.

    Args:
        scores: ``dice_scores`` of each case.

    Returns:
        A mean for each class and their mean, ``None`` where there is nothing to average.
    """
    by_class = [
        mean_std([None if np.isnan(score) else score for score in column])[0] for column in zip(*scores, strict=True)
    ]
    return by_class, mean_std(by_class)[0]


def mean_dice(by_class: Mapping[int, ClassValues]) -> float | None:
    """Mean over the classes of one case's ``case_metrics``, without the empty ones; ``None`` if all are."""
    return mean_std([values["dice"] for values in by_class.values()])[0]


def case_metrics(prediction: np.ndarray, truth: np.ndarray, classes: int, spacing: Spacing) -> dict[int, ClassValues]:
    """Measures of one volume for each class but the background.

    Args:
        prediction: class indices [Z, Y, X] on the file's own grid.
        truth: the same of the label.
        classes: number of classes, background included.
        spacing: voxel size (z, y, x), in the unit of the distances.

    Returns:
        By class index the ``MEASURES``, ``miss``, ``empty``.

    Raises:
        ValueError: shapes differ or are not 3-D.
    """
    _check(prediction, truth)
    return {index: _class_metrics(prediction == index, truth == index, spacing) for index in range(1, classes)}


def summarize(
    cases: Mapping[str, Mapping[int, ClassValues]], class_names: Sequence[str], unit: str = "mm"
) -> dict[str, Any]:
    """The table of a test set, ready for JSON.

    Args:
        cases: ``case_metrics`` by case name.
        class_names: background first.
        unit: of the distances, mm or voxels.

    Returns:
        ``unit``: of the distances.
        ``cases``: case → class name → measures, as in ``case_metrics``.
        ``classes``: class name → ``MEASURES``: means over the cases that have the measure (``None`` if none has), each
        with its standard deviation over the same cases under ``<measure>_std``; ``misses`` and ``empty``: numbers of
        cases.
        ``mean``: the same, where each measure is the mean of the classes' values that exist and ``<measure>_std`` the
        deviation over the cases of a case's mean over its classes; ``misses`` and ``empty`` are sums over the classes.
    """
    named = {
        case: {class_names[index]: dict(values) for index, values in by_class.items()}
        for case, by_class in cases.items()
    }
    classes = {name: _over_cases([by_class[name] for by_class in named.values()]) for name in class_names[1:]}
    mean: dict[str, float | None] = {}
    for name in MEASURES:
        mean[name], _ = mean_std([values[name] for values in classes.values()])
        of_cases = [mean_std([values[name] for values in by_class.values()])[0] for by_class in named.values()]
        _, mean[f"{name}_std"] = mean_std(of_cases)
    for count in ("misses", "empty"):
        mean[count] = sum(values[count] or 0 for values in classes.values())
    return {"unit": unit, "classes": classes, "cases": named, "mean": mean}


def _check(prediction: np.ndarray, truth: np.ndarray) -> None:
    if prediction.shape != truth.shape or truth.ndim != 3:
        raise ValueError(f"prediction and truth must both be [Z, Y, X], got {prediction.shape} and {truth.shape}")


def _class_metrics(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing) -> ClassValues:
    there = bool(prediction.any()), bool(truth.any())
    empty, miss = not any(there), any(there) and not all(there)
    if empty or miss:
        values = {name: None if empty else measure.on_miss for name, measure in MEASURES.items()}
        return {**values, "miss": miss, "empty": empty}
    # Nothing outside the common bounding box matters. The margin makes voxels at the volume's border surface voxels.
    box = find_objects((prediction | truth).astype(np.uint8))[0]
    masks = [torch.from_numpy(np.pad(mask[box], 1))[None, None] for mask in (prediction, truth)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from within MONAI, about an argument of its own
        measured = {name: measure.compute(masks[0], masks[1], spacing) for name, measure in MEASURES.items()}
    return {**measured, "miss": False, "empty": False}


def _over_cases(values: Sequence[ClassValues]) -> dict[str, float | None]:
    result: dict[str, float | None] = {}
    for name in MEASURES:
        result[name], result[f"{name}_std"] = mean_std([value[name] for value in values])
    result["misses"] = sum(value["miss"] or 0 for value in values)
    result["empty"] = sum(value["empty"] or 0 for value in values)
    return result


def mean_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and population deviation of the values that exist."""
    existing = [value for value in values if value is not None]
    return (float(np.mean(existing)), float(np.std(existing))) if existing else (None, None)
