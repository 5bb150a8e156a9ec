"""Metrics against values computed by hand, in millimetres, with every empty case."""

import json
import warnings

import numpy as np
import pytest

from action.evaluate import Shown, _panels, table
from action.metrics import MEASURES, case_metrics, dice_scores, mean_dice, mean_scores, summarize

SPACING = (8.0, 1.5, 1.25)  # z, y, x: all different, so that a swap shows
SHAPE = (6, 20, 24)


def box(z, y, x, value=1, shape=SHAPE):
    label = np.zeros(shape, np.uint8)
    label[slice(*z), slice(*y), slice(*x)] = value
    return label


def test_overlap_by_hand():
    truth = box((1, 3), (2, 8), (3, 13))  # 2 · 6 · 10 = 120 voxels
    prediction = box((1, 3), (2, 8), (8, 18))  # half of it
    values = case_metrics(prediction, truth, 2, SPACING)[1]
    assert values["dice"] == pytest.approx(0.5)
    assert values["jaccard"] == pytest.approx(1 / 3)
    assert not values["miss"] and not values["empty"]


@pytest.mark.parametrize(("axis", "voxels"), [(0, 2), (1, 3), (2, 5)])
def test_distance_of_two_points_is_in_millimetres_of_its_axis(axis, voxels):
    truth, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    place = [1, 4, 5]
    truth[tuple(place)] = 1
    place[axis] += voxels
    prediction[tuple(place)] = 1
    values = case_metrics(prediction, truth, 2, SPACING)[1]
    assert values["asd"] == pytest.approx(voxels * SPACING[axis])
    assert values["hd95"] == pytest.approx(voxels * SPACING[axis])
    assert values["dice"] == 0 and not values["miss"]  # there, but elsewhere: not a miss


def test_distance_of_parallel_planes():
    truth, prediction = box((1, 2), (5, 6), (0, 24)), box((1, 2), (9, 10), (0, 24))
    values = case_metrics(prediction, truth, 2, SPACING)[1]
    assert values["asd"] == pytest.approx(4 * 1.5) and values["hd95"] == pytest.approx(4 * 1.5)


def test_average_and_percentile_weigh_both_directions():
    # Truth: a line of 24 voxels. Prediction: the line and one voxel 6 rows (9 mm) below it. From the truth every
    # distance is 0; from the prediction 24 are 0 and one is 9.
    truth = box((2, 3), (4, 5), (0, 24))
    prediction = truth.copy()
    prediction[2, 10, 11] = 1
    values = case_metrics(prediction, truth, 2, SPACING)[1]
    assert values["asd"] == pytest.approx(9 / 49)
    assert values["hd95"] == pytest.approx(0)  # the 95th percentile of 25 values leaves the farthest out
    swapped = case_metrics(truth, prediction, 2, SPACING)[1]
    assert swapped["asd"] == pytest.approx(values["asd"]) and swapped["hd95"] == values["hd95"]


def test_hd95_is_the_larger_of_both_directions():
    # Prediction: 6 of the truth's 24 voxels. From the prediction all distances are 0; from the truth they are
    # 0 (6 times), then 1, 2, ..., 18 voxels: the 95th percentile of the 24 lies between 16 and 17.
    truth, prediction = box((2, 3), (4, 5), (0, 24)), box((2, 3), (4, 5), (0, 6))
    values = case_metrics(prediction, truth, 2, SPACING)[1]
    assert values["hd95"] == pytest.approx(1.25 * np.percentile([0] * 6 + list(range(1, 19)), 95))
    assert values["asd"] == pytest.approx(1.25 * sum(range(1, 19)) / 30)


def test_inner_voxels_are_no_surface():
    # Two nested cubes: only surfaces count, and a mean over all voxels would be smaller.
    truth, prediction = box((0, 1), (4, 13), (4, 13)), box((0, 1), (5, 12), (5, 12))
    flat = case_metrics(prediction, truth, 2, (1.0, 1.0, 1.0))[1]
    assert flat["hd95"] >= 0  # a single slice is all surface
    shape = (13, 13, 13)
    truth = box((2, 11), (2, 11), (2, 11), shape=shape)
    prediction = box((3, 10), (3, 10), (3, 10), shape=shape)
    values = case_metrics(prediction, truth, 2, (1.0, 1.0, 1.0))[1]
    # From the inner cube's surface every voxel is 1 from the outer surface; from the outer one: faces 7² · 6 at 1,
    # edges 7 · 12 at √2, corners 8 at √3.
    inner, outer = [1.0] * (7**3 - 5**3), [1.0] * 294 + [2**0.5] * 84 + [3**0.5] * 8
    assert values["asd"] == pytest.approx(np.mean(inner + outer), rel=1e-5)
    assert values["hd95"] == pytest.approx(np.percentile(outer, 95), rel=1e-5)


def test_a_structure_cut_by_the_volumes_border_has_its_surface_there():
    truth, prediction = box((0, 6), (0, 10), (0, 24)), box((0, 6), (0, 12), (0, 24))
    values = case_metrics(prediction, truth, 2, SPACING)[1]
    assert 0 < values["asd"] < 3 and values["hd95"] == pytest.approx(3.0)


def test_perfect_is_one_and_zero():
    truth = box((1, 4), (2, 9), (3, 9)) + box((1, 4), (12, 15), (3, 9), 2)
    for values in case_metrics(truth.copy(), truth, 3, SPACING).values():
        assert (values["dice"], values["jaccard"], values["asd"], values["hd95"]) == (1, 1, 0, 0)


def test_every_empty_case():
    nothing, something = np.zeros(SHAPE, np.uint8), box((1, 3), (2, 8), (3, 13))
    both = case_metrics(nothing, nothing, 2, SPACING)[1]
    nowhere, on_miss = dict.fromkeys(MEASURES), {name: measure.on_miss for name, measure in MEASURES.items()}
    assert both == nowhere | {
        "dice": None,
        "jaccard": None,
        "asd": None,
        "hd95": None,
        "miss": False,
        "empty": True,
    }
    for pair in ((nothing, something), (something, nothing)):
        alone = case_metrics(*pair, 2, SPACING)[1]
        assert alone == on_miss | {
            "dice": 0,
            "jaccard": 0,
            "asd": None,
            "hd95": None,
            "miss": True,
            "empty": False,
        }


def test_classes_are_measured_apart_and_background_is_not():
    truth = box((1, 3), (2, 8), (3, 13), 1) + box((1, 3), (10, 14), (3, 13), 3)
    prediction = box((1, 3), (2, 8), (3, 13), 1) + box((1, 3), (10, 14), (3, 13), 2)
    values = case_metrics(prediction, truth, 5, SPACING)
    assert list(values) == [1, 2, 3, 4]
    assert [values[i]["dice"] for i in values] == [1, 0, 0, None]
    assert [values[i]["miss"] for i in values] == [False, True, True, False]
    assert [values[i]["empty"] for i in values] == [False, False, False, True]


def test_dice_scores_agree_with_the_full_measures():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 4, SHAPE).astype(np.uint8), rng.integers(0, 3, SHAPE).astype(np.uint8)
    full = case_metrics(prediction, truth, 6, SPACING)
    scores = dice_scores(prediction, truth, 6)
    assert scores.shape == (5,)
    assert np.allclose(scores[:3], [full[i]["dice"] for i in range(1, 4)], atol=1e-6)
    assert scores[2] == 0 and np.isnan(scores[3:]).all()  # a miss, and two empty ones
    assert full[4]["dice"] is None and full[5]["dice"] is None


@pytest.mark.parametrize("measure", [lambda p, t: dice_scores(p, t, 2), lambda p, t: case_metrics(p, t, 2, SPACING)])
def test_shapes_must_agree(measure):
    with pytest.raises(ValueError, match=r"\(6, 20, 24\) and \(6, 20, 23\)"):
        measure(np.zeros(SHAPE, np.uint8), np.zeros((6, 20, 23), np.uint8))


def measures(dice=0.5, asd=1.0, miss=False, empty=False):
    distance = None if miss or empty else asd
    dice, jaccard = (None, None) if empty else (dice, dice / 2)
    values = {"dice": dice, "jaccard": jaccard, "asd": distance, "hd95": distance}
    return {**dict.fromkeys(MEASURES), **values, "miss": miss, "empty": empty}


def test_summary_by_hand():
    cases = {
        "a": {1: measures(0.8, 1.0), 2: measures(0.6, 4.0)},
        "b": {1: measures(0.6, 3.0), 2: measures(0.0, miss=True)},
        "c": {1: measures(0.7, 2.0), 2: measures(empty=True)},
    }
    summary = summarize(cases, ("background", "liver", "tumour"))
    liver, tumour, mean = summary["classes"]["liver"], summary["classes"]["tumour"], summary["mean"]
    assert liver["dice"] == pytest.approx(0.7) and liver["dice_std"] == pytest.approx(np.std([0.8, 0.6, 0.7]))
    assert liver["asd"] == pytest.approx(2.0) and (liver["misses"], liver["empty"]) == (0, 0)
    assert tumour["dice"] == pytest.approx(0.3)  # the miss counts in full, the empty case not at all
    assert tumour["asd"] == pytest.approx(4.0) and tumour["asd_std"] == 0
    assert (tumour["misses"], tumour["empty"]) == (1, 1)
    assert mean["dice"] == pytest.approx((0.7 + 0.3) / 2)
    assert mean["dice_std"] == pytest.approx(np.std([0.7, 0.3, 0.7]))
    assert mean["asd"] == pytest.approx(3.0)  # of the classes' 2 and 4
    assert (mean["misses"], mean["empty"]) == (1, 1)
    assert summary["cases"]["b"]["tumour"]["miss"] is True
    assert (summary["unit"], summarize(cases, ("background", "liver", "tumour"), "voxels")["unit"]) == ("mm", "voxels")
    assert {"dice", "jaccard", "asd", "hd95"} <= set(MEASURES)
    assert set(liver) == {f"{m}{s}" for m in MEASURES for s in ("", "_std")} | {"misses", "empty"}


def test_a_class_missed_everywhere_has_no_distance_and_the_json_no_nan():
    cases = {"a": {1: measures(0.8), 2: measures(0, miss=True)}, "b": {1: measures(0.6), 2: measures(0, miss=True)}}
    summary = summarize(cases, ("background", "liver", "tumour"))
    assert summary["classes"]["tumour"]["asd"] is None and summary["classes"]["tumour"]["misses"] == 2
    assert summary["mean"]["asd"] == pytest.approx(1.0)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_real_measures_are_json_and_raise_no_warning():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, SHAPE).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cases = {"a": case_metrics(np.roll(truth, 1, 1), truth, 4, SPACING)}
        summary = summarize(cases, ("background", "a", "b", "c"))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_an_empty_class_counts_towards_no_mean():
    cases = {"a": {1: measures(0.8), 2: measures(empty=True)}, "b": {1: measures(0.4), 2: measures(empty=True)}}
    summary = summarize(cases, ("background", "liver", "tumour"))
    assert summary["classes"]["tumour"]["dice"] is None and summary["classes"]["tumour"]["empty"] == 2
    assert summary["mean"]["dice"] == pytest.approx(0.6) and summary["mean"]["dice_std"] == pytest.approx(0.2)
    assert mean_dice(cases["a"]) == pytest.approx(0.8) and mean_dice({1: measures(empty=True)}) is None
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_mean_scores_leave_out_what_is_nan():
    by_class, mean = mean_scores([np.array([0.5, np.nan, np.nan]), np.array([0.7, 0.2, np.nan])])
    assert by_class == [pytest.approx(0.6), pytest.approx(0.2), None] and mean == pytest.approx(0.4)
    assert mean_scores([np.array([np.nan]), np.array([np.nan])]) == ([None], None)


def test_the_table_counts_empty_cases_beside_misses():
    cases = {"a": {1: measures(0.8), 2: measures(empty=True)}, "b": {1: measures(0.4), 2: measures(empty=True)}}
    head, liver, tumour, mean = table(summarize(cases, ("", "liver", "tumour")))
    assert head.split()[-2:] == ["misses", "empty"]
    assert liver.split()[1] == "0.600" and liver.split()[-2:] == ["0", "0"]
    assert tumour.split()[1:] == [*["n/a"] * len(MEASURES), "0", "2"] and mean.split()[-1] == "2"
    _, liver, tumour, _ = table(summarize(cases, ("", "liver", "tumour")), spread=True)
    assert liver.split()[1:4] == ["0.600", "±", "0.200"] and tumour.split()[1:] == [*["n/a"] * len(MEASURES), "0", "2"]


def test_overlays_rank_cases_without_their_empty_classes(loaded_cases):
    cases = loaded_cases[:4]
    dice = [[0.5, None], [0.9, 0.7], [None, None], [0.6, 0.2]]
    results = {
        case.name: {i: measures(d, empty=d is None) for i, d in enumerate(row, start=1)}
        for case, row in zip(cases, dice, strict=True)
    }
    shown = {case.name: Shown(0, case.truth[0], case.truth[0]) for case in cases}
    titles = [title for title, *_ in _panels(cases, shown, results)]
    assert [title.split(":")[0] for title in titles] == ["best", "median", "worst"]
    for title, case, value in zip(titles, (cases[1], cases[0], cases[3]), ("0.800", "0.500", "0.400"), strict=True):
        assert case.name in title and title.endswith(value)
    nothing = {case.name: {1: measures(empty=True)} for case in cases}
    assert all(title.endswith("n/a") for title, *_ in _panels(cases, shown, nothing))
