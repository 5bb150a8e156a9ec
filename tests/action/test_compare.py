"""Runs beside each other: the intervals, what is refused, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from browser import Page

from action import compare
from action.errors import InputError
from action.intervals import Resamples
from action.metrics import summarize

CLASSES = ("background", "liver", "tumor")


def values(dice: float | None) -> dict:
    miss, empty = dice == 0, dice is None
    return {"dice": dice, "jaccard": dice, "asd": dice, "hd95": dice, "miss": miss, "empty": empty}


def make(root: Path, dice: np.ndarray, names: tuple[str, ...] = CLASSES, **more: object) -> Path:
    """A run's folder with a summary of ``dice`` [cases, classes]; NaN is empty. Two cases belong to a patient."""
    rows = [[None if np.isnan(value) else float(value) for value in row] for row in dice]
    cases = {f"case{n:02d}": {i: values(v) for i, v in enumerate(row, 1)} for n, row in enumerate(rows)}
    summary = summarize(cases, names) | {"patients": {name: f"p{i // 2}" for i, name in enumerate(cases)}} | more
    root.mkdir()
    (root / "summary.json").write_text(json.dumps(summary))
    return root


def seeded(root: Path, dice: np.ndarray, seed: int, method: str = "action", **more: object) -> Path:
    """A run of ``make`` with its settings."""
    make(root, dice, **more)
    (root / "config.yaml").write_text(yaml.safe_dump({"method": method, "seed": seed, "output": str(root)}))
    return root


@pytest.fixture
def methods(tmp_path: Path) -> list[Path]:
    """Three seeds of one method and two of another, which are mixed up."""
    rng = np.random.default_rng(4)
    roots = []
    for seed, method in ((0, "mine"), (0, "other"), (10, "mine"), (1, "other"), (2, "mine")):
        dice = rng.uniform(0.3, 0.8, (20, 2))
        roots.append(seeded(tmp_path / f"heart-{method}-seed{seed}", dice, seed, method))
    return roots


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """The second run is 0.1 better in every case of the first class and as good in the second."""
    rng = np.random.default_rng(0)
    dice = rng.uniform(0.3, 0.8, (20, 2))
    return [make(tmp_path / "first", dice), make(tmp_path / "second", dice + np.array([0.1, 0]))]


def test_an_interval_is_that_of_the_normal_distribution_where_there_are_many_patients() -> None:
    x = np.random.default_rng(1).normal(2, 3, (1, 4000))
    found, overall = Resamples([str(i) for i in range(4000)]).intervals(x)
    half = 1.96 * x.std() / np.sqrt(4000)
    assert found.mean == pytest.approx(x.mean()) and overall == pytest.approx(found)
    assert found.low == pytest.approx(x.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(x.mean() + half, abs=0.1 * half)


def test_cases_of_a_patient_are_drawn_together() -> None:
    x = np.repeat(np.random.default_rng(2).normal(size=(1, 50)), 4, axis=1)
    patients = [str(i // 4) for i in range(200)]
    together = Resamples(patients).intervals(x)[0]
    assert together == pytest.approx(Resamples([str(i) for i in range(50)]).intervals(x[:, ::4])[0])
    alone = Resamples([str(i) for i in range(200)]).intervals(x)[0]
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_absent_values_count_towards_no_mean() -> None:
    x = np.array([[1.0, np.nan, 3.0], [np.nan] * 3])
    one, none, overall = Resamples(["a", "b", "c"]).intervals(x)
    assert one.mean == overall.mean == 2 and np.isnan(none).all() and (one.low, one.high) == (1, 3)


def test_differences_are_paired(pair: list[Path]) -> None:
    comparison = compare.compare(pair)
    head, rows = comparison.tables[0]
    assert (head.name, comparison.cases, comparison.patients) == ("dice", 20, 10)
    found = {(row.class_name, row.run): row for row in rows}
    gain = found["liver", "second"].difference
    assert gain == pytest.approx((0.1, 0.1, 0.1)) and gain.excludes_zero  # whoever is drawn
    assert found["tumor", "second"].difference == pytest.approx((0, 0, 0), abs=1e-12)
    assert found["mean", "second"].difference.mean == pytest.approx(0.05)
    assert found["liver", "first"].difference is None
    spread = found["liver", "second"].value
    assert spread.high - spread.low > 0.05
    assert compare.compare(pair) == comparison  # the same numbers every time


def test_the_means_are_those_of_the_summaries(pair: list[Path]) -> None:
    summary = json.loads((pair[1] / "summary.json").read_text())
    for head, rows in compare.compare(pair).tables:
        for row in rows[1::2]:
            wanted = summary["mean"] if row.class_name == "mean" else summary["classes"][row.class_name]
            assert row.value.mean == pytest.approx(wanted[head.name])


def test_it_is_printed_and_no_file_is_replaced_unasked(pair: list[Path], tmp_path: Path, capsys) -> None:
    output = tmp_path / "pages" / "compare.html"
    compare.main([*map(str, pair), "-o", str(output)])
    printed = capsys.readouterr().out
    assert "+0.100 [+0.100, +0.100] *" in printed and "10000 resamples" in printed and "HD95 (mm)" in printed
    with pytest.raises(InputError, match="--overwrite"):
        compare.main([*map(str, pair), "-o", str(output)])
    compare.main([*map(str, pair), "-o", str(output), "--overwrite"])
    with pytest.raises(InputError, match=f"--output is {tmp_path}, a folder: name the HTML file"):
        compare.main([*map(str, pair), "-o", str(tmp_path)])
    with pytest.raises(InputError, match="would be replaced"):
        compare.main([*map(str, pair), "-o", str(pair[0] / "summary.json"), "--overwrite"])


def dice_of(root: Path) -> np.ndarray:
    """[classes, cases]"""
    cases = json.loads((root / "summary.json").read_text())["cases"].values()
    return np.array([[case[name]["dice"] for case in cases] for name in CLASSES[1:]], dtype=float)


def test_runs_that_differ_in_their_seed_count_as_one(methods: list[Path]) -> None:
    comparison = compare.compare(methods)
    assert comparison.names == ["heart-mine", "heart-other"]
    mine, other = (np.stack([dice_of(root) for root in methods if name in root.name]) for name in ("mine", "other"))
    rows = {(row.class_name, row.run): row for row in comparison.tables[0][1]}
    for index, name in enumerate(CLASSES[1:]):
        row = rows[name, "heart-mine"]
        assert row.value.mean == pytest.approx(mine[:, index].mean())
        assert row.spread == pytest.approx(mine[:, index].mean(1).std())
    assert rows["mean", "heart-other"].spread == pytest.approx(other.mean((1, 2)).std())
    patients = [f"p{i // 2}" for i in range(20)]
    by_cases = Resamples(patients).intervals(other.mean(0) - mine.mean(0))
    assert rows["liver", "heart-other"].difference == pytest.approx(by_cases[0])
    assert rows["mean", "heart-other"].difference == pytest.approx(by_cases[-1])


def test_a_case_that_one_seed_has_no_value_of_has_that_of_the_others(tmp_path: Path) -> None:
    roots = []
    for seed, first in enumerate((np.nan, 0.4, 0.6)):
        roots.append(seeded(tmp_path / f"run{seed}", np.array([[first, np.nan], [0.9, np.nan]]), seed))
    liver, tumor, _ = compare.compare(roots).tables[0][1]
    assert liver.run == "run" and liver.value.mean == pytest.approx((0.5 + 0.9) / 2)
    assert np.isnan(tumor.value.mean) and tumor.spread is None


def test_seeds_of_one_method_alone_have_nothing_to_differ_from(methods: list[Path], tmp_path: Path, capsys) -> None:
    compare.main([*map(str, methods[::2]), "-o", str(tmp_path / "compare.html")])
    assert "difference from" not in capsys.readouterr().out + (tmp_path / "compare.html").read_text()


def test_what_is_no_other_seed_of_the_same_stands_alone(tmp_path: Path) -> None:
    dice = np.full((4, 2), 0.5)
    names = ["old-0", "old-1", "new-0", "new-1", "mirrored", "plain", "damaged", "else"]
    for name in names[:4]:  # one code before a change, one after it
        seeded(tmp_path / name, dice, int(name[-1]))
    seeded(tmp_path / "mirrored", dice, 5, mirror=True)
    make(tmp_path / "plain", dice)
    (make(tmp_path / "damaged", dice) / "config.yaml").write_text("seed: [")
    seeded(tmp_path / "else", dice, 0, "supervised")
    found = compare.compare([tmp_path / name for name in names])
    assert found.names == ["old", "new", *names[4:]]
    assert [member.run for member in found.members] == names[:4]
    assert all(row.spread is None for row in found.tables[0][1] if row.run in names[4:])


def test_names_of_several_runs_are_never_those_of_others(tmp_path: Path) -> None:
    dice = np.full((4, 2), 0.5)
    first = [seeded(tmp_path / name, dice, seed) for seed, name in enumerate(("a0", "a1"))]
    second = [seeded(tmp_path / name, dice, seed, "other") for seed, name in enumerate(("a-0", "a-1"))]
    third = [seeded(tmp_path / name, dice, seed, "third") for seed, name in enumerate(("good", "better"))]
    assert compare.compare([*first, *second, *third]).names == ["a0, a1", "a-0, a-1", "good, better"]
    folders = []
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        folders += [seeded(tmp_path / name / f"seed{seed}", dice, seed, name) for seed in (0, 1)]
    assert compare.compare(folders).names == [str(tmp_path / "x"), str(tmp_path / "y")]


def test_every_run_of_several_is_told_and_reached(methods: list[Path], tmp_path: Path, capsys) -> None:
    (methods[2] / "report.html").write_text("the run's own page")
    output = tmp_path / "pages" / "compare.html"
    compare.main([*map(str, methods), "-o", str(output)])
    printed, page = capsys.readouterr().out, output.read_text()
    assert "heart-other: heart-other-seed0 (seed 0), heart-other-seed1 (seed 1)" in printed and " ± 0.0" in printed
    assert all(root.name in page for root in methods)
    assert page.count('<a href="../heart-mine-seed10/report.html">') == page.count("report.html") == 1


def test_runs_without_other_seeds_have_no_deviation(pair: list[Path], tmp_path: Path, capsys) -> None:
    compare.main([*map(str, pair), "-o", str(tmp_path / "compare.html")])
    page = (tmp_path / "compare.html").read_text()
    assert "±" not in capsys.readouterr().out + page and 'id="runs"' not in page


def test_what_cannot_be_compared_is_refused(pair: list[Path], tmp_path: Path) -> None:
    dice = np.full((20, 2), 0.5)
    cases = make(tmp_path / "cases", dice[:18])
    classes = make(tmp_path / "classes", dice, ("background", "liver", "spleen"))
    unit = make(tmp_path / "unit", dice, unit="voxels")
    for roots, sentence in (
        ([pair[0]], "alone cannot be compared"),
        ([pair[0], pair[0]], "named twice"),
        ([pair[0], tmp_path], "give the folder of a run"),
        ([pair[0], cases], "their cases differ, only one has case18, case19"),
        ([pair[0], classes], "their classes differ, only one has spleen, tumor"),
        ([pair[0], unit], "distances are in mm and in voxels"),
    ):
        with pytest.raises(InputError, match=sentence):
            compare.compare(roots)


def test_the_page_works_in_a_browser(pair: list[Path], browser: Page, tmp_path: Path) -> None:
    output = tmp_path / "compare.html"
    compare.main([*map(str, pair), "-o", str(output)])
    browser.show(output, 390, 800, "dark")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    browser.run("document.querySelectorAll('th button')[3].click()")
    shown = browser.run("[...document.querySelector('tbody').rows].map(row => row.cells[3].dataset.value)")
    there = [float(value) for value in shown if value]
    assert there == sorted(there) and shown[len(there) :] == [""] * 3
    assert browser.complaints == []
