import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

from action import train
from action.cli import parse_config
from action.errors import InputError
from action.run_folder import RunFolder
from studies import command, curves, inside, overlays, plots
from studies import methods as study

CLASSES = ("liver", "kidneys")


def score(liver, kidneys, **measured):
    return study.Score(dict(zip(CLASSES, (liver, kidneys), strict=True)), (liver + kidneys) / 2, **measured)


@pytest.fixture
def scores():
    measured = {"asd": 1.0, "misses": 1}
    return {
        "labeled-only": [score(0.5, 0.3, **measured), score(0.7, 0.5, **measured)],
        "action": [score(0.8, 0.6, **measured), score(0.7, 0.5, **measured)],
        "fully-labeled": [score(0.9, 0.9, **measured), score(0.9, 0.7, **measured)],
    }


def test_share_of_the_gap(scores):
    assert study.gap_closed(scores, "action") == pytest.approx((0.65 - 0.5) / (0.85 - 0.5))
    assert study.gap_closed({"action": scores["action"]}, "action") is None


def test_table_has_every_arm_and_figures_from_the_scores(scores):
    lines = study.table({1: scores, 7: scores}).splitlines()
    row = "| ACTION | 75.0 ± 5.0 | 55.0 ± 5.0 | 65.0 ± 5.0 | 1.00 | 2 | 43 % |"
    assert f"| 1 {row}" in lines and f"| 7 {row}" in lines
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 1", "| 1", "| 7", "| 7", "| all"]
    assert "| ASD mm |" in lines[0]
    in_voxels = {1: {"action": [score(0.5, 0.5, asd=1.0, misses=0, unit="voxels")]}}
    assert "| ASD voxels |" in study.table(in_voxels)
    on_validation = {1: {"action": [score(0.8, 0.6)]}}
    assert study.table(on_validation).splitlines()[-1] == "| 1 | ACTION | 80.0 ± 0.0 | 60.0 ± 0.0 | 70.0 ± 0.0 |  |"


def test_a_class_that_no_patient_has_is_left_out_of_the_mean(scores):
    first, second = scores["action"]
    scores["action"] = [study.Score({**first.classes, "kidneys": None}, first.mean), second]
    assert "| 75.0 ± 5.0 | 50.0 ± 0.0 |" in study.table({1: scores})
    scores["action"] = scores["action"][:1]
    assert "| 80.0 ± 0.0 | n/a |" in study.table({1: scores})


def test_the_figure_is_drawn_from_a_table_of_every_seed(scores, tmp_path):
    first, second = scores["action"]
    scores["action"] = [first, study.Score({**second.classes, "kidneys": None}, second.mean)]
    study.write_dice({1: scores, 3: scores}, [0, 5], tmp_path / "dice.csv")
    rows = plots.read(tmp_path / "dice.csv")
    assert len(rows) == 2 * 3 * 2 * 3
    empty = {"labelled": "3", "method": "ACTION", "seed": "5", "class": "kidneys", "dice": ""}
    assert empty in rows and {**empty, "class": "liver", "dice": "70.00"} in rows
    upper, lower = plots.dice(tmp_path / "dice.csv", "Dice").axes
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in lower.containers}
    assert heights["ACTION"] == pytest.approx([75, 60, 65]) and heights["labelled only"] == pytest.approx([60, 40, 50])
    assert [upper.get_title(), lower.get_title()] == ["1 labelled patient", "3 labelled patients"]
    assert upper.get_ylim() == (0, 100)


@pytest.mark.parametrize("name", study.ARMS | study.ABLATION)
def test_every_arm_makes_as_many_updates(name):
    shared = ["--global_distillation.iterations=5", "--local_distillation.iterations=7"]
    asked = parse_config(shared)
    arm = (study.ARMS | study.ABLATION)[name]
    changed = parse_config([*shared, *arm.flags(asked)])
    assert changed.total_iterations == asked.total_iterations
    for stage in arm.left_out:
        assert getattr(changed, stage).iterations == 0


def test_a_study_trains_every_arm_once_and_goes_on_where_it_stopped(acdc_root, tmp_path, monkeypatch):
    flags = [
        "--model.channels=[4,6]",
        "--model.embedding=4",
        "--baseline.iterations=1",
        "--global_distillation.iterations=1",
        "--local_distillation.iterations=1",
        "--anatomical_contrast.iterations=1",
        "--device=cpu",
    ]
    arms, output = ["labeled-only", "fully-labeled"], tmp_path / "study"
    first = study.study(acdc_root, [1, 2], [0], arms, output, flags, jobs=2)
    assert sorted(path.name for path in output.iterdir() if path.is_dir()) == [
        "fully-labeled-seed0",
        "labeled-only-1-seed0",
        "labeled-only-2-seed0",
    ]
    runs = [first[count][arm][0] for count in (1, 2) for arm in arms]
    assert [len(json.loads(run.split.read_text())["labeled"]) for run in runs] == [1, 7, 2, 7]
    for run in runs:
        test, validation = study.on_test(run), study.on_validation(run)
        assert list(test.classes) == list(validation.classes) and test.misses is not None
        last = run.metrics.read_text().splitlines()[-1].split(",")
        assert validation.mean == pytest.approx(float(last[run.metrics.read_text().split(",").index("val_dice")]))
    monkeypatch.setattr(study.subprocess, "run", lambda *a, **k: pytest.fail("trained again"))
    # Labels alone know no bank.
    again = study.study(acdc_root, [1, 2], [0], arms, output, [*flags, "--local_distillation.bank=9"], jobs=1)
    assert [again[count][arm][0].root for count in (1, 2) for arm in arms] == [run.root for run in runs]
    with pytest.raises(InputError, match="labeled-only-1-seed0 holds a run with other settings: optimizer"):
        study.study(acdc_root, [1, 2], [0], arms, output, [*flags, "--optimizer.lr=0.5"], jobs=1)


@pytest.mark.parametrize(
    "flag",
    [
        "--labeled=[0]",
        "--labeled=[]",
        "--jobs=0",
        "--seeds=[0,-1]",
        "--seeds=[]",
        "--arms=[]",
        "--arms=[x]",
        "--on=train",
    ],
)
def test_numbers_and_names_are_checked_before_anything_is_trained(flag, monkeypatch):
    monkeypatch.setattr(study, "study", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(InputError, match=flag[2:].partition("=")[0]):
        command.call(study.compare, ["--data=/", flag])


def test_flags_behind_two_dashes_are_those_of_the_training():
    seen = {}

    def function(number: int = 1, flags: list[str] = []) -> None:  # noqa: B006
        seen.update(number=number, flags=flags)

    command.call(function, ["--number=2", "--", "--config", "a b.yaml", "--number=[3]"])
    assert seen == {"number": 2, "flags": ["--config", "a b.yaml", "--number=[3]"]}
    command.call(function, [])
    assert seen == {"number": 1, "flags": []}


@pytest.fixture(scope="module")
def run(acdc_root, tmp_path_factory):
    """A finished run of four updates."""
    output = tmp_path_factory.mktemp("study") / "run"
    flags = ["--method=supervised", "--labeled=2", "--baseline.iterations=4", "--evaluation.every=2"]
    small = ["--model.channels=[4,6]", "--model.embedding=4", "--device=cpu"]
    train.main([f"--data={acdc_root}", f"--output={output}", *flags, *small])
    return output


def test_the_curves_of_runs_are_read_by_updates_and_by_minutes(run, tmp_path):
    first, last = curves.points(RunFolder(run))
    assert [first[0], last[0]] == [2, 4] and 0 <= first[1] < last[1] < 2
    with run.joinpath("metrics.csv").open(newline="") as file:
        dice = [100 * float(row["val_dice"]) for row in csv.DictReader(file) if row["val_dice"]]
    assert [first[2], last[2]] == dice
    for against in ("updates", "minutes"):
        curves.main([str(run), str(run)], ["one", "two"], against, tmp_path / "curves")
    rows = plots.read(tmp_path / "curves.csv")
    assert [(row["run"], row["updates"]) for row in rows] == [("one", "2"), ("one", "4"), ("two", "2"), ("two", "4")]
    for theme in ("light", "dark"):
        assert "minutes</text>" in (tmp_path / f"curves-{theme}.svg").read_text()
    with pytest.raises(InputError, match="1 names for 2 runs"):
        curves.main([str(run), str(run)], ["one"])
    for nothing in ([], [str(tmp_path / "nothing")]):
        with pytest.raises(InputError, match="give the folders of runs"):
            curves.main(nothing)


def test_minutes_of_an_interrupted_run_are_not_known(run, tmp_path):
    resumed = tmp_path / "resumed"
    shutil.copytree(run, resumed)
    (resumed / "events" / "events.of-another-start").touch()
    assert [minutes for _, minutes, _ in curves.points(RunFolder(resumed))] == [None, None]
    with pytest.raises(InputError, match="resumed was interrupted"):
        curves.main([str(resumed)], against="minutes", output=tmp_path / "curves")


def test_overlays_show_what_runs_make_of_a_case(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(overlays, "plot_overlays", lambda *drawing: drawn.append(drawing))
    predicted = sorted((run / "predictions").iterdir())[0]
    name = predicted.name.removesuffix(".nii.gz")
    output = tmp_path / "a" / "figure"
    overlays.main([str(run), str(run)], ["one", "two"], [f"{name}:3", name], margin=100, output=output)
    (panels, classes, light), (*_, dark) = drawn
    assert [light, dark] == [tmp_path / "a" / f"figure-{theme}.png" for theme in ("light", "dark")]
    assert len(classes) == 4
    expected = np.asarray(nib.load(predicted).dataobj).T  # what the run's own evaluation wrote
    by_class = json.loads((run / "summary.json").read_text())["cases"][name].values()
    dice = f"{100 * np.mean([values['dice'] for values in by_class if values['dice'] is not None]):.0f} %"
    for title, image, labels in panels:
        z = int(title.removeprefix(f"{name}, slice ")) - 1
        truth, one, two = labels
        assert (truth, one, two) == ("truth", f"one: {dice}", f"two: {dice}") and image.shape == expected.shape[1:]
        assert np.array_equal(labels[one], expected[z]) and np.array_equal(labels[two], expected[z])
        assert labels["truth"].any()
    assert panels[0][0] == f"{name}, slice 3"
    drawn.clear()
    overlays.main([str(run)], cases=[name, name], titles=["here", "there"], output=output)
    assert [title for title, *_ in drawn[0][0]] == ["here", "there"]


def test_overlays_show_a_square_around_the_truth():
    truth = np.zeros((60, 80), np.uint8)
    truth[20:30, 40:44] = 2
    assert overlays.around(truth, 5) == (slice(15, 35), slice(32, 52))
    truth[0, 0] = 1
    assert truth[overlays.around(truth, 100)].shape == truth.shape
    assert truth[overlays.around(0 * truth, 5)].shape == truth.shape


def test_overlays_name_what_is_not_there(run, tmp_path):
    with pytest.raises(InputError, match="--runs is empty"):
        overlays.main(cases=["patient001_frame01"])
    with pytest.raises(InputError, match="--cases is empty"):
        overlays.main([str(run)])
    with pytest.raises(InputError, match="1 names for 2 runs"):
        overlays.main([str(run), str(run)], ["one"], ["patient001_frame01"])
    with pytest.raises(InputError, match="1 titles for 2 cases"):
        overlays.main([str(run)], cases=["patient001_frame01", "patient001_frame09"], titles=["here"])
    with pytest.raises(InputError, match="has no labelled case patient001_frame02: did you mean patient001_frame09"):
        overlays.main([str(run)], cases=["patient001_frame02"])
    with pytest.raises(InputError, match="patient001_frame01 has the slices 1 to 4, not 5"):
        overlays.main([str(run)], cases=["patient001_frame01:5"])
    with pytest.raises(InputError, match="patient001_frame01 has the slices 1 to 4, not last"):
        overlays.main([str(run)], cases=["patient001_frame01:last"])


def test_classes_that_lie_apart_are_told_from_those_that_do_not():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 8, generator=generator)

    def pixels(spread):
        labels = torch.arange(3).repeat(400)
        return centres[labels] + spread * torch.randn(1200, 8, generator=generator), labels

    apart, share = inside.separation(*pixels(0.01), *pixels(0.01), 3)
    assert apart == [1.0] * 3 and share > 0.99
    mixed, share = inside.separation(*pixels(100.0), *pixels(100.0), 3)
    assert 0.2 < np.mean(mixed) < 0.47 and share < 0.05
    swapped, _ = inside.separation(*pixels(0.01), pixels(0.01)[0], pixels(0.01)[1].roll(1), 3)
    assert swapped == [0.0] * 3


def test_a_target_is_spread_over_as_many_rows_as_are_alike():
    similarity = torch.tensor([[1.0, 1.0, 1.0, -1.0], [1.0, -1.0, -1.0, -1.0]])
    assert inside.softness(similarity, 0.01) == pytest.approx((3 + 1) / 2)
    assert inside.softness(similarity, 1e6) == pytest.approx(4, rel=1e-4)


def test_a_training_is_looked_into_without_a_change_to_it(acdc_root, tmp_path):
    flags = [
        f"--data={acdc_root}",
        "--labeled=2",
        "--model.channels=[4,6]",
        "--model.embedding=4",
        "--input.size=[64,64]",
        "--device=cpu",
        *(f"--{stage}.iterations=2" for stage in ("global_distillation", "local_distillation", "anatomical_contrast")),
    ]
    train.main([*flags, f"--output={tmp_path / 'plain'}"])
    inside.watch(tmp_path / "watched", every=2, patients=3, flags=flags)
    with (tmp_path / "watched" / "inside.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(step) for step in dict.fromkeys(row["step"] for row in rows)] == [2, 4, 6]
    measures = {step: {row["measure"] for row in rows if row["step"] == step} for step in ("2", "4", "6")}
    assert "rows of a slice's target" in measures["2"] and "Dice of pseudo-labels" not in measures["2"]
    assert {"rows of a window's target", "Dice of pseudo-labels"} <= measures["4"]
    assert {"nearest class mean, representation", "Dice of pseudo-labels"} <= measures["6"]
    assert all(
        0 <= float(row["value"]) <= 1 for row in rows if "target" not in row["measure"] and row["value"] != "nan"
    )
    assert all(1 <= float(row["value"]) <= 36 for row in rows if "target" in row["measure"])
    plain, watched = ((tmp_path / name / "metrics.csv").read_text() for name in ("plain", "watched"))
    assert plain == watched
    with pytest.raises(InputError, match="watched"):
        inside.watch(tmp_path / "watched", flags=flags)
