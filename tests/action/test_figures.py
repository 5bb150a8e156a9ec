"""Figures: files of the right size in which the things to be seen are drawn."""

import csv

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib import image as images
from matplotlib.colors import to_rgb

from action.figures import plot_overlays, plot_progress
from action.palette import CLASSES as CLASS_COLORS
from action.palette import LINES

CLASSES = ("background", "right ventricle", "myocardium", "left ventricle")
COLUMNS = [
    "step",
    "stage",
    "lr",
    "loss",
    "global",
    "supervised",
    "val_dice",
    *(f"val_dice_{name}" for name in CLASSES[1:]),
]


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows(count=60, validated=True):
    for step in range(1, count + 1):
        row = {"step": step, "stage": "first" if step <= count // 3 else "second", "lr": 0.01, "loss": 3 / step}
        row |= {"global": 1 / step} if step <= count // 3 else {"supervised": 0.5 + 0.3 * (-1) ** step}
        if validated and step > count // 3 and step % 10 == 0:
            row |= {"val_dice": 0.6} | {f"val_dice_{name}": 0.5 + 0.1 * i for i, name in enumerate(CLASSES[1:])}
        yield row


def pixels_of(path, color, tolerance=0.08):
    """Number of pixels of about this colour."""
    return int((np.abs(images.imread(path)[..., :3] - to_rgb(color)).max(-1) < tolerance).sum())


def test_progress_draws_every_loss_and_the_mean_dice(tmp_path):
    plot_progress(write_csv(tmp_path / "metrics.csv", rows()), tmp_path / "progress.png")
    for color in LINES[:3]:  # three losses, three classes
        assert pixels_of(tmp_path / "progress.png", color) > 300
    assert pixels_of(tmp_path / "progress.png", "black") > 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "progress.png"]


def test_progress_marks_where_stages_change(tmp_path):
    write_csv(tmp_path / "two.csv", rows())
    write_csv(tmp_path / "one.csv", [row | {"stage": "only"} for row in rows()])
    for name in ("two", "one"):
        plot_progress(tmp_path / f"{name}.csv", tmp_path / f"{name}.png")
    two, one = (images.imread(tmp_path / f"{name}.png") for name in ("two", "one"))
    # The Dice panel differs by a vertical line and by nothing else; the names are above the loss panel.
    lower = np.abs(two - one)[two.shape[0] * 55 // 100 :].max(-1) > 0.02
    columns = np.flatnonzero(lower.any(0))
    assert lower.sum() > 100 and columns[-1] - columns[0] < 5
    assert 0.25 < columns[0] / two.shape[1] < 0.45  # a third of the steps


@pytest.mark.parametrize("count", [0, 1, 2])
def test_progress_of_a_run_that_has_hardly_begun(tmp_path, count):
    plot_progress(write_csv(tmp_path / "metrics.csv", rows(count, validated=False)), tmp_path / "progress.png")
    assert images.imread(tmp_path / "progress.png").shape[0] > 400


def test_progress_survives_losses_that_are_not_finite(tmp_path):
    content = [row | {"loss": "nan" if row["step"] == 5 else row["loss"]} for row in rows()]
    content[7]["loss"] = "inf"
    plot_progress(write_csv(tmp_path / "metrics.csv", content), tmp_path / "progress.png")
    assert pixels_of(tmp_path / "progress.png", LINES[0]) > 300


def panels(count=3):
    rng = np.random.default_rng(0)
    for index in range(count):
        image = rng.normal(0.4, 0.1, (40, 48))
        truth = np.zeros((40, 48), np.uint8)
        truth[5:20, 5:20], truth[22:35, 5:20], truth[5:20, 25:40] = 1, 2, 3
        prediction = np.where(truth == 3, 0, truth)
        yield f"case {index}", image, {"truth": truth, "prediction": prediction}


def test_overlays_show_truth_and_prediction_of_every_case(tmp_path):
    plot_overlays(list(panels()), CLASSES, tmp_path / "three.png")
    plot_overlays(list(panels(1)), CLASSES, tmp_path / "one.png")
    three, one = (images.imread(tmp_path / f"{name}.png") for name in ("three", "one"))
    assert three.shape[0] > 2 * one.shape[0] and three.shape[1] == one.shape[1]
    found, missed = (pixels_of(tmp_path / "three.png", CLASS_COLORS[i], 0.15) for i in (0, 2))
    assert found > 1.4 * missed > 0  # class 3 is in no prediction; the legend has every colour


def test_overlays_without_any_foreground(tmp_path):
    nothing = np.zeros((16, 16), np.uint8)
    plot_overlays(
        [("empty", np.zeros((16, 16)), {"truth": nothing, "prediction": nothing})], CLASSES[:2], tmp_path / "o.png"
    )
    content = images.imread(tmp_path / "o.png")[..., :3]
    assert content.std() > 0.1  # a black image and a title on white


def test_overlays_of_many_classes_have_many_colours(tmp_path):
    names = ("background", *(f"organ {i}" for i in range(1, 15)))
    label = np.arange(15 * 15, dtype=np.uint8).reshape(15, 15) % 15
    plot_overlays([("many", np.zeros((15, 15)), {"truth": label, "prediction": label})], names, tmp_path / "o.png")
    assert len(np.unique((images.imread(tmp_path / "o.png")[..., :3] * 7).astype(int).reshape(-1, 3), axis=0)) > 25


def test_figures_leave_pyplot_alone(tmp_path):
    plt.close("all")
    plot_overlays(list(panels(1)), CLASSES, tmp_path / "o.png")
    plot_progress(write_csv(tmp_path / "metrics.csv", rows()), tmp_path / "p.png")
    assert plt.get_fignums() == []
