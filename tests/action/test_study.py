import json

import numpy as np
import pytest

from action import train
from action.cli import parse_config
from action.errors import InputError
from action.run_folder import RunFolder
from studies import curves
from studies import methods as study

CLASSES = ("liver", "kidneys")


def summary(liver, kidneys):
    classes = {
        name: {"dice": dice, "asd_mm": 1.0, "misses": 0} for name, dice in zip(CLASSES, (liver, kidneys), strict=True)
    }
    return {"classes": classes, "mean": {"dice": (liver + kidneys) / 2, "asd_mm": 1.0, "misses": 0}}


@pytest.fixture
def results():
    return {
        "labeled-only": [summary(0.5, 0.3), summary(0.7, 0.5)],
        "action": [summary(0.8, 0.6), summary(0.7, 0.5)],
        "fully-labeled": [summary(0.9, 0.9), summary(0.9, 0.7)],
    }


def test_share_of_the_gap(results):
    assert study.gap_closed(results, "action") == pytest.approx((0.65 - 0.5) / (0.85 - 0.5))
    assert study.gap_closed({"action": results["action"]}, "action") is None


def test_table_has_every_arm_and_figures_from_the_summaries(results, tmp_path):
    lines = study.table(results).splitlines()
    assert "| ACTION | 75.0 ± 5.0 | 55.0 ± 5.0 | 65.0 ± 5.0 | 1.00 | 0 | 43 % |" in lines
    assert len(lines) == 2 + 3
    results["action"][0]["classes"]["kidneys"]["dice"] = None  # a class that no test case has
    assert "| 75.0 ± 5.0 | 50.0 ± 0.0 |" in study.table(results)
    results["action"][1]["classes"]["kidneys"]["dice"] = None
    assert "| 75.0 ± 5.0 | n/a |" in study.table(results)
    study.plot(results, "test", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


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
    arms = ["labeled-only", "fully-labeled"]
    first = study.study(acdc_root, 1, [0], arms, tmp_path / "study", flags, jobs=2)
    splits = [json.loads((tmp_path / "study" / f"{arm}-seed0" / "split.json").read_text()) for arm in arms]
    assert [len(split["labeled"]) for split in splits] == [1, 7]
    monkeypatch.setattr(study.subprocess, "run", lambda *a, **k: pytest.fail("trained again"))
    again = study.study(acdc_root, 1, [0], arms, tmp_path / "study", flags, jobs=1)
    assert again == first
    with pytest.raises(InputError, match="labeled-only-seed0 holds a run with other settings: optimizer"):
        study.study(acdc_root, 1, [0], arms, tmp_path / "study", [*flags, "--optimizer.lr=0.5"], jobs=1)
    assert np.isfinite(study.gap_closed(first, "labeled-only") or 0.0)


@pytest.mark.parametrize("flag", ["--labeled=0", "--jobs=0", "--seeds=[0,-1]", "--seeds=[]", "--arms=[]", "--arms=[x]"])
def test_numbers_and_names_are_checked_before_anything_is_trained(flag, monkeypatch):
    monkeypatch.setattr(study, "study", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(InputError, match=flag[2:].partition("=")[0]):
        study.main(["--data=/", flag])


def test_the_curves_of_runs_are_read_by_updates_and_by_minutes(acdc_root, tmp_path):
    output = tmp_path / "run"
    flags = ["--method=supervised", "--labeled=2", "--baseline.iterations=4", "--evaluation.every=2"]
    small = ["--model.channels=[4,6]", "--model.embedding=4", "--device=cpu"]
    train.main([f"--data={acdc_root}", f"--output={output}", *flags, *small])
    updates, dice = curves.by_updates(RunFolder(output))
    minutes, same = curves.by_minutes(RunFolder(output))
    assert updates == [2, 4] and dice == pytest.approx(same, abs=0.01)
    assert 0 <= minutes[0] < minutes[1] < 2
    curves.main([str(output), str(output)], ["one", "two"], output=tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000
    with pytest.raises(InputError, match="1 names for 2 runs"):
        curves.main([str(output), str(output)], ["one"], output=tmp_path / "curves.png")
    for nothing in ([], [str(tmp_path / "nothing")]):
        with pytest.raises(InputError, match="give the folders of runs"):
            curves.main(nothing, output=tmp_path / "curves.png")
