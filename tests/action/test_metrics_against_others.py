"""Dice, Jaccard, ASD and HD95 against SimpleITK and DeepMind's surface-distance, on voxels of three different edges."""

import numpy as np
import pytest
import SimpleITK as sitk
import surface_distance
from scipy import ndimage

from action.metrics import case_metrics

SPACINGS = [(3.0, 0.7, 1.1), (0.6, 2.0, 0.9)]  # z, y, x in mm
SHAPE = (12, 21, 26)


def box(*ranges):
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(*part) for part in ranges)] = True
    return mask


def ellipsoid(centre, radii):
    places = np.indices(SHAPE).T
    return (((places - np.array(centre)) / radii) ** 2).sum(-1).T < 1


def blob(seed):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2)
    return field > np.quantile(field, 0.85)  # several pieces, some with holes, some cut by the border


pytestmark = pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning:surface_distance")

PAIRS = {
    "ellipsoids": (ellipsoid((6, 10, 12), (4, 7, 8)), ellipsoid((5, 11, 13), (4, 6, 9))),
    "touching the border": (box((0, 5), (0, 9), (10, 26)), box((0, 6), (2, 12), (12, 26))),
    "the whole volume": (box((0, 12), (0, 21), (0, 26)), box((1, 11), (0, 21), (3, 26))),
    "several pieces": (
        box((1, 4), (2, 6), (2, 7)) | box((6, 10), (12, 18), (15, 22)),
        box((2, 5), (3, 6), (2, 8)) | box((6, 9), (1, 3), (20, 24)),
    ),
    "blobs": (blob(1), blob(2)),
    "blobs that overlap": (blob(3), ndimage.binary_dilation(blob(3)) & ~blob(4)),
    "single voxels": (box((3, 4), (5, 6), (7, 8)), box((5, 6), (9, 10), (4, 5))),
    "a voxel in a corner": (box((0, 1), (0, 1), (0, 1)), ellipsoid((6, 10, 12), (4, 7, 8))),
    "a thin plate": (box((6, 7), (2, 19), (3, 22)), box((7, 8), (4, 20), (3, 20))),
    "a line": (box((5, 6), (10, 11), (2, 24)), box((5, 6), (12, 13), (2, 24)) | box((2, 8), (10, 11), (5, 6))),
    "one inside the other": (ellipsoid((6, 10, 12), (2, 3, 4)), ellipsoid((6, 10, 12), (5, 9, 11))),
}


@pytest.fixture(params=PAIRS)
def pair(request):
    return PAIRS[request.param]


@pytest.fixture(params=SPACINGS, ids=str)
def spacing(request):
    return request.param


def ours(prediction, truth, spacing):
    return case_metrics(prediction.astype(np.uint8), truth.astype(np.uint8), 2, spacing)[1]


def joined(to_truth, to_prediction):
    """Our ASD and HD95 of the distances of two surfaces to each other."""
    return np.mean([*to_truth, *to_prediction]), max(np.percentile(d, 95) for d in (to_truth, to_prediction))


def as_image(mask, spacing):
    image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))  # outside the volume is background
    image.SetSpacing(spacing[::-1])
    return image


def test_overlap(pair, spacing):
    values = ours(*pair, spacing)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(as_image(mask, spacing) for mask in pair))
    assert values["dice"] == pytest.approx(overlap.GetDiceCoefficient(), abs=1e-6)
    assert values["jaccard"] == pytest.approx(overlap.GetJaccardCoefficient(), abs=1e-6)
    assert values["dice"] == pytest.approx(surface_distance.compute_dice_coefficient(*pair), abs=1e-6)


def test_distances_are_those_between_contours_in_simpleitk(pair, spacing):
    contours = [sitk.BinaryContour(as_image(mask, spacing), fullyConnected=False) for mask in pair]
    maps = [
        np.abs(sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(c, squaredDistance=False, useImageSpacing=True)))
        for c in contours
    ]
    on = [sitk.GetArrayFromImage(contour) > 0 for contour in contours]
    asd, hd95 = joined(maps[1][on[0]].astype(float), maps[0][on[1]].astype(float))
    values = ours(*pair, spacing)
    assert values["asd"] == pytest.approx(asd, rel=1e-6, abs=1e-6)
    assert values["hd95"] == pytest.approx(hd95, rel=1e-6, abs=1e-6)


def elements(mask):
    """The places of surface-distance's elements, on a lattice of half the spacing so that none is beside another.

    They are the corners that voxels inside and outside share.
    """
    padded = np.pad(mask, 1)
    around = [padded[z : z - 1 or None, y : y - 1 or None, x : x - 1 or None] for z, y, x in np.ndindex(2, 2, 2)]
    corners = np.any(around, axis=0) & ~np.all(around, axis=0)
    spread = np.zeros([2 * n for n in corners.shape], bool)
    spread[::2, ::2, ::2] = corners
    return spread


def test_distances_are_those_between_the_elements_of_surface_distance(pair, spacing):
    """What both define alike: its elements lie at other places and have areas, so their places are given to ours."""
    theirs = surface_distance.compute_surface_distances(*pair, spacing)
    asd, hd95 = joined(theirs["distances_gt_to_pred"], theirs["distances_pred_to_gt"])
    values = ours(*map(elements, pair), tuple(size / 2 for size in spacing))
    assert values["asd"] == pytest.approx(asd, rel=1e-6, abs=1e-6)
    assert values["hd95"] == pytest.approx(hd95, rel=1e-6, abs=1e-6)


def test_flat_faces_are_as_far_apart_with_areas_as_without(spacing):
    """Where all of a surface lies at one distance, its weights do not matter."""
    masks = box((3, 4), (0, 21), (0, 26)), box((8, 9), (0, 21), (0, 26))
    theirs = surface_distance.compute_surface_distances(*masks, spacing)
    values = ours(*masks, spacing)
    assert values["hd95"] == pytest.approx(5 * spacing[0], rel=1e-6)
    assert values["hd95"] == pytest.approx(surface_distance.compute_robust_hausdorff(theirs, 95), rel=1e-6)
