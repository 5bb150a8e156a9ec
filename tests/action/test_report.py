"""The page of a run: what it shows, what it needs, and that it works in a browser."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from browser import Page
from test_train import SHORT

from action import report, train
from action.cli import load_config
from action.config import InputConfig
from action.data import open_dataset
from action.data.nifti import write_label
from action.data.volumes import load_case
from action.errors import InputError
from action.figures import read_columns
from action.metrics import confusion
from action.pages.charts import LEFT, NUMBER, RIGHT, chart
from action.pages.embedding import embeddings
from action.pages.summary import case_mean
from action.pages.viewer import read_prediction, viewed
from action.run_folder import RunFolder


@pytest.fixture(scope="module")
def finished(acdc_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that writes its page."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("action.train.write_report", report.write_report)
        train.main([f"--data={acdc_root}", "--labeled=2", f"--output={output}", *SHORT])
    return output


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def text(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def seen(run: Path) -> dict:
    """What the page's script shows of the worst cases."""
    _, _, rest = text(run).partition('id="viewed">')
    return json.loads(rest.partition("</script>")[0])


def test_the_page_has_every_case_and_needs_nothing_else(finished: Path) -> None:
    page, summary = text(finished), json.loads((finished / "summary.json").read_text())
    assert all(case in page and summary["patients"][case] in case for case in summary["cases"])
    assert "http" not in page and "url(" not in page and "src=" not in page.replace("image.src =", "")
    worst = min(summary["cases"], key=lambda case: case_mean(summary["cases"][case], "dice"))
    assert seen(finished)["cases"][0]["title"].startswith(worst)
    starts = json.loads((finished / "environment.json").read_text())
    assert len(starts) == 1 and starts[0]["step"] == 0 and "torch" in starts[0]["versions"]
    assert starts[0]["versions"]["torch"] in page


def test_the_teacher_is_validated_where_it_gives_labels(finished: Path) -> None:
    _, stages, columns = read_columns(finished / "metrics.csv")
    there = np.isfinite(columns["val_teacher_dice"])
    student = np.isfinite(columns["val_dice"])
    assert np.array_equal(there, student & (stages == "anatomical_contrast")) and there.any()
    assert "Dice of the teacher" in text(finished)


def test_a_confusion_counts_every_voxel_once(finished: Path, acdc_root: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    voxels = sum(sum(row.values()) for row in summary["confusion"].values())
    cases = [case for case in open_dataset(acdc_root, "acdc").cases if case.name in summary["cases"]]
    assert voxels == sum(load_case(case, 4, InputConfig((1.5, 1.5))).required_truth.size for case in cases)
    pairs = confusion(np.array([[[0, 1, 1]]]), np.array([[[0, 0, 1]]]), 2)
    assert pairs.tolist() == [[1, 1], [0, 1]]


def test_without_the_data_the_page_says_why_it_has_no_slices(
    copy: Path, acdc_root: Path, tmp_path: Path, capsys
) -> None:
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(str(acdc_root), str(tmp_path / "gone")))
    report.main([str(copy)])
    assert "give --data" in text(copy) and 'id="viewed"' not in text(copy)
    assert "shows no slices" in capsys.readouterr().out
    report.main([str(copy), f"--data={acdc_root}"])
    assert seen(copy)["cases"]


def test_a_run_that_nobody_tests_has_a_page_too(copy: Path) -> None:
    (copy / "summary.json").unlink()
    report.main([str(copy)])
    assert "action.evaluate writes it" in text(copy) and "Losses" in text(copy)
    split = json.loads((copy / "split.json").read_text())
    (copy / "split.json").write_text(json.dumps({**split, "test": []}))
    report.main([str(copy)])
    assert "No patient tests this run" in text(copy)


def test_where_nobody_tests_the_page_shows_validation_patients(copy: Path, acdc_root: Path) -> None:
    (copy / "summary.json").unlink()
    split = json.loads((copy / "split.json").read_text())
    (copy / "split.json").write_text(json.dumps({**split, "test": []}))
    report.main([str(copy)])
    shown = seen(copy)
    cases = [case.name for case in open_dataset(acdc_root, "acdc").cases if case.patient in split["validation"]]
    titles = [case["title"] for case in shown["cases"]]
    assert (
        sorted(title.partition(",")[0] for title in titles) == sorted(cases)[: len(titles)]
        and len(shown["colors"]) == 3
    )
    assert "Worst validation cases" in text(copy) and "by whom its network was chosen" in text(copy)
    dice = [float(title.rpartition(" ")[2]) for title in titles]
    assert dice == sorted(dice)


def test_the_page_says_which_network_predicts(finished: Path, copy: Path, capsys) -> None:
    steps, _, columns = read_columns(finished / "metrics.csv")
    there = np.isfinite(columns["val_dice"])
    smoothing = load_config(finished / "config.yaml").evaluation.smoothing
    averages: list[float] = []
    for dice in columns["val_dice"][there]:
        averages.append(smoothing * (averages[-1] if averages else dice) + (1 - smoothing) * dice)
    step = steps[there][int(np.argmax(averages))]
    assert f"network of update {step}\n" in text(finished) and f"at update {step}, whose" in text(finished)
    (copy / "checkpoints" / "best.pt").write_bytes(b"damaged")
    report.main([str(copy)])
    assert "which network predicts" in capsys.readouterr().out and "network of update" not in text(copy)


def test_numbers_without_a_test_and_of_an_unfinished_run(copy: Path) -> None:
    steps, _, columns = read_columns(copy / "metrics.csv")
    last = columns["val_dice"][np.isfinite(columns["val_dice"])][-1]
    assert f"{last:.3f}" in text(copy) and "unfinished" not in text(copy)
    lines = (copy / "metrics.csv").read_text().splitlines(keepends=True)
    (copy / "metrics.csv").write_text("".join(lines[:-1]))
    report.main([str(copy)])
    assert f"{len(steps) - 1} of {len(steps)}, unfinished" in text(copy)


def test_features_are_drawn_before_and_after_the_last_stage(finished: Path, copy: Path, capsys) -> None:
    assert "before anatomical contrast" in text(finished) and "after anatomical contrast" in text(finished)
    (copy / "checkpoints" / "latest.pt").write_bytes(b"damaged")
    report.main([str(copy)])
    assert "shows no features" in capsys.readouterr().out and "anatomical contrast</h3>" not in text(copy)
    assert seen(copy) == seen(finished)


def test_the_networks_of_the_stages_differ_and_their_pixels_do_not(finished: Path, acdc_root: Path) -> None:
    folder = RunFolder(finished)
    before, after = embeddings(folder, load_config(folder.config), open_dataset(acdc_root, "acdc"))
    assert [group.name for group in before.groups] == list(open_dataset(acdc_root, "acdc").class_names)
    for one, other in zip(before.groups, after.groups, strict=True):
        assert one.path.count("z") == other.path.count("z") > 20 and one.path != other.path


@pytest.mark.parametrize("begins", [[1, 2, 3], [1, 3950, 3990, 4000], [1, 1000, 1010, 3999]])
def test_numbers_of_stages_that_are_close_stand_apart_inside_the_drawing(begins: list[int]) -> None:
    stages = chart("losses", [], begins, 4000).stages
    assert [stage.text for stage in stages] == [str(i) for i in range(1, len(begins) + 1)]
    assert all(before.at + NUMBER <= after.at for before, after in pairwise(stages))
    assert stages[0].at > LEFT and stages[-1].at <= RIGHT


def test_names_are_text(copy: Path) -> None:
    summary = copy / "summary.json"
    summary.write_text(summary.read_text().replace("myocardium", "<b>&'x"))
    report.main([str(copy)])
    assert "<b>&" not in text(copy) and "&lt;b&gt;&amp;" in text(copy)


def test_summaries_of_other_versions_and_folders_without_a_run_are_refused(copy: Path, tmp_path: Path) -> None:
    before = text(copy)
    (copy / "summary.json").write_text('{"mean": {}, "classes": {}, "cases": {}, "unit": "mm"}')
    with pytest.raises(InputError, match="evaluate the run again"):
        report.main([str(copy)])
    assert text(copy) == before
    with pytest.raises(InputError, match="give the folder of a run"):
        report.main([str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("layout", ["acdc", "lits"])
def test_predictions_are_read_as_the_case_lies(layout: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    root = request.getfixturevalue(f"{layout}_root")
    dataset = open_dataset(root, layout)
    classes = len(dataset.class_names)
    case = load_case(dataset.cases[0], classes, InputConfig((1.5, 1.5)))
    write_label(tmp_path / "label.nii.gz", case.required_truth, case.volume)
    assert np.array_equal(read_prediction(tmp_path / "label.nii.gz", case, classes), case.required_truth)


def test_a_case_without_foreground_is_shown_whole(loaded_cases) -> None:
    case = loaded_cases[0]
    empty = type(case)(**{**vars(case), "truth": np.zeros(case.shape, np.uint8)})
    shown = viewed(empty, empty.required_truth, ["background", "a", "b", "c"])
    assert shown["slices"] == list(range(1, case.shape[0] + 1)) and "–" in shown["dice"][0]


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (390, "dark")])
def test_the_page_works_in_a_browser(finished: Path, browser: Page, width: int, scheme: str) -> None:
    browser.complaints.clear()
    browser.show(finished / "report.html", width, 900, scheme)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")

    sort = "document.querySelectorAll('#every-case th button')[2].click()"
    dice = (
        "[...document.querySelectorAll('#every-case tbody tr')].map(row => row.cells[2].dataset.value).filter(x => x)"
    )
    browser.run(sort)
    rising = [float(value) for value in browser.run(dice)]
    browser.run(sort)
    falling = [float(value) for value in browser.run(dice)]
    assert rising == sorted(rising) and falling == rising[::-1] and rising[0] < rising[-1]
    visible = "[...document.querySelectorAll('#every-case tbody tr')].filter(row => row.offsetHeight).length"
    cases = browser.run(visible)
    choose = "document.getElementById('class').{}; document.getElementById('class').dispatchEvent(new Event('change'))"
    browser.run(choose.format("value = ''"))
    assert browser.run(visible) == 4 * cases

    ready = "new Promise(done => { const look = () => document.getElementById('about').textContent"
    browser.run(f"{ready} ? done() : setTimeout(look, 20); look(); }})")
    about, drawing = "document.getElementById('about').textContent", "document.getElementById('prediction').toDataURL()"
    browser.run(
        "document.getElementById('slice').value = 0; document.getElementById('slice').dispatchEvent(new Event('input'))"
    )
    first = browser.run(about), browser.run(drawing)
    browser.run("document.getElementById('viewer').focus()")
    browser.press("ArrowRight")
    second = browser.run(about), browser.run(drawing)
    assert first[0] != second[0] and first[1] != second[1]
    assert browser.complaints == []
