"""Overlap and surface distance of segmentations in 3-D, in millimetres, with every empty case accounted for.

A class in neither the truth nor the prediction is `empty`: nothing can be measured, and it counts towards no mean (as
in nnU-Net and MONAI); such cases are counted beside the means. A class in one of them alone is a `miss`: Dice and
Jaccard 0, distances infinite, so that they have no mean; misses are counted beside the means of the finite distances
and never dropped. Measures that are not applicable or infinite are `None`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance, compute_iou
from scipy.ndimage import find_objects

MEASURES = ("dice", "jaccard", "asd_mm", "hd95_mm")


def dice_scores(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Dice of the classes 1 to `classes` - 1 of one volume, float64 [classes - 1]; empty NaN, miss 0.

    Args:
        prediction, truth: class indices [Z, Y, X].
    """
    _check(prediction, truth)
    pairs = np.bincount(classes * truth.ravel().astype(np.int64) + prediction.ravel(), minlength=classes**2)
    pairs = pairs.reshape(classes, classes)
    both, size = np.diag(pairs)[1:], (pairs.sum(0) + pairs.sum(1))[1:]
    return np.where(size > 0, 2 * both / np.maximum(size, 1), np.nan)


def mean_scores(scores: Sequence[np.ndarray]) -> tuple[list[float | None], float | None]:
    """Mean over cases for each class, and the mean of those; of the scores that are no NaN.

    Args:
        scores: `dice_scores` of each case.

    Returns:
        A mean for each class and their mean, `None` where there is nothing to be meaned.
    """
    by_class = [
        _mean_std([None if np.isnan(score) else score for score in column])[0] for column in zip(*scores, strict=True)
    ]
    return by_class, _mean_std(by_class)[0]


def mean_dice(by_class: Mapping[int, Mapping]) -> float | None:
    """Mean over the classes of one case's `case_metrics`, without the empty ones; `None` if all are."""
    return _mean_std([values["dice"] for values in by_class.values()])[0]


def case_metrics(
    prediction: np.ndarray, truth: np.ndarray, classes: int, spacing: tuple[float, float, float]
) -> dict[int, dict]:
    """Measures of one volume for each class but the background.

    Args:
        prediction, truth: class indices [Z, Y, X] on the file's own grid.
        classes: number of classes, background included.
        spacing: voxel size (z, y, x) in mm.

    Returns:
        By class index: `dice`, `jaccard`, `asd_mm` (mean over the surface voxels of both, each to the other surface),
        `hd95_mm` (the larger of both directions' 95th percentiles), `miss`, `empty`.

    Raises:
        ValueError: shapes differ or are not 3-D.
    """
    _check(prediction, truth)
    return {index: _class_metrics(prediction == index, truth == index, spacing) for index in range(1, classes)}


def summarize(cases: Mapping[str, Mapping[int, Mapping]], class_names: Sequence[str]) -> dict:
    """The table of a test set, ready for JSON.

    Args:
        cases: `case_metrics` by case name.
        class_names: background first.

    Returns:
        `cases`: case → class name → measures, as in `case_metrics`.
        `classes`: class name → `dice`, `jaccard`, `asd_mm`, `hd95_mm`: means over the cases that have the measure
        (`None` if none has), each with its standard deviation over the same cases under `<measure>_std`; `misses` and
        `empty`: numbers of cases.
        `mean`: the same, where each measure is the mean of the classes' values that there are and `<measure>_std` the
        deviation over the cases of a case's mean over its classes; `misses` and `empty` are sums over the classes.
    """
    named = {
        case: {class_names[index]: dict(values) for index, values in by_class.items()}
        for case, by_class in cases.items()
    }
    classes = {name: _over_cases([by_class[name] for by_class in named.values()]) for name in class_names[1:]}
    mean = {}
    for measure in MEASURES:
        mean[measure], _ = _mean_std([values[measure] for values in classes.values()])
        of_cases = [_mean_std([values[measure] for values in by_class.values()])[0] for by_class in named.values()]
        _, mean[f"{measure}_std"] = _mean_std(of_cases)
    for count in ("misses", "empty"):
        mean[count] = sum(values[count] for values in classes.values())
    return {"classes": classes, "cases": named, "mean": mean}


def _check(prediction: np.ndarray, truth: np.ndarray) -> None:
    if prediction.shape != truth.shape or truth.ndim != 3:
        raise ValueError(f"prediction and truth must both be [Z, Y, X], got {prediction.shape} and {truth.shape}")


def _class_metrics(prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float]) -> dict:
    there = bool(prediction.any()), bool(truth.any())
    empty, miss = not any(there), any(there) and not all(there)
    if empty or miss:
        overlap = None if empty else 0.0
        return {"dice": overlap, "jaccard": overlap, "asd_mm": None, "hd95_mm": None, "miss": miss, "empty": empty}
    # Nothing outside the common bounding box matters. The margin makes voxels at the volume's border surface voxels.
    box = find_objects((prediction | truth).astype(np.uint8))[0]
    pair = [torch.from_numpy(np.pad(mask[box], 1))[None, None] for mask in (prediction, truth)]
    one = {"include_background": True}  # a single channel: the class
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from within MONAI, about an argument of its own
        measures = {
            "dice": compute_dice(*pair, **one),
            "jaccard": compute_iou(*pair, **one),
            "asd_mm": compute_average_surface_distance(*pair, symmetric=True, spacing=spacing, **one),
            "hd95_mm": compute_hausdorff_distance(*pair, percentile=95, spacing=spacing, **one),
        }
    return {key: float(value) for key, value in measures.items()} | {"miss": False, "empty": False}


def _over_cases(values: Sequence[Mapping]) -> dict:
    result = {}
    for measure in MEASURES:
        result[measure], result[f"{measure}_std"] = _mean_std([value[measure] for value in values])
    return result | {"misses": sum(v["miss"] for v in values), "empty": sum(v["empty"] for v in values)}


def _mean_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and population deviation of the values that exist."""
    existing = [value for value in values if value is not None]
    return (float(np.mean(existing)), float(np.std(existing))) if existing else (None, None)
