"""What may happen to one of several processes: all end soon, one says why, and the run goes on to the same results."""

from __future__ import annotations

import csv
import random
import shutil
import time

import pytest
import torch
from several import Several, preloaded
from test_kills import SHORT, assert_same_run

from action.run_folder import RunFolder, load_checkpoint

STEPS = {"global_distillation": 3, "local_distillation": 3, "anatomical_contrast": 6}


@pytest.fixture(scope="module")
def processes():
    return preloaded("several")


SLOWLY = "--optimizer.lr=0.0003"
"""At the usual rate float32's rounding, which the number of processes changes, grows tenfold every few updates."""


def command(data, root, *more):
    steps = [*(f"--{stage}.iterations={count}" for stage, count in STEPS.items()), SLOWLY]
    return ["--data", data, *SHORT, *steps, "--evaluation.checkpoint_every=1", f"--output={root}", *more]


@pytest.fixture(scope="module")
def whole(processes, acdc_root, tmp_path_factory):
    """The run of two processes that nothing happens to, and its seconds."""
    folder, began = tmp_path_factory.mktemp("whole"), time.monotonic()
    several = Several(processes, command(acdc_root, folder / "run"), folder / "logs", 2)
    assert several.wait() == [0, 0], several.said
    return RunFolder(folder / "run"), time.monotonic() - began


def latest(run):
    return load_checkpoint(run.latest, torch.device("cpu"))


def updates(run):
    """How many the latest checkpoint has."""
    if not run.latest.is_file():
        return 0
    state = latest(run)
    return sum([*STEPS.values()][: state["stage_index"]]) + state["stage_step"]


def assert_close_run(one, other):
    """Equal but for rounding: the runs had other numbers of processes."""
    ours, theirs = latest(one), latest(other)
    assert (ours["stage_index"], ours["stage_step"]) == (theirs["stage_index"], theirs["stage_step"])
    for name, value in theirs["learner"].items():
        torch.testing.assert_close(ours["learner"][name], value, rtol=0, atol=1e-5)
    tables = [list(csv.DictReader(run.metrics.open(newline=""))) for run in (one, other)]
    for row, expected in zip(*tables, strict=True):
        for name, value in expected.items():
            assert row[name] == value or float(row[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), (
                row,
                name,
            )


FAULTS = {  # what happens, before which update, to which of how many, and what a process that is left says of it
    "killed": ("killed", 5, 1, 2, "error: rank 1 ended without a reason: killed, or out of memory"),
    "the first killed": ("killed", 8, 0, 2, "error: rank 0 ended without a reason: killed, or out of memory"),
    "stopped": ("stopped", 5, 1, 3, "error: rank 1 did not answer for 6 seconds"),
    "the first stopped": ("stopped", 8, 0, 2, "error: rank 0 did not answer for 6 seconds"),
    "stopped while it reads": ("stopped", 0, 1, 2, "error: rank 1 did not answer for 6 seconds"),
    "out of memory": ("out of memory", 5, 1, 2, "error: out of memory (9 GB)"),
}


@pytest.mark.parametrize(("fault", "step", "victim", "world", "sentence"), FAULTS.values(), ids=FAULTS)
def test_all_end_with_one_sentence_and_go_on(
    fault, step, victim, world, sentence, processes, acdc_root, whole, tmp_path
):
    run, began = RunFolder(tmp_path / "run"), time.monotonic()
    arguments = command(acdc_root, run.root, "--timeout=6")
    several = Several(processes, arguments, tmp_path / "logs", world, {victim: (fault, step)})
    codes = several.wait(90, but=(victim,))
    assert [code for rank, code in enumerate(codes) if rank != victim] == [2] * (world - 1), several.said
    assert time.monotonic() - began < 80
    assert several.said.count(sentence) == several.said.count("error: ") == 1, several.said
    assert "Traceback" not in several.said
    if step:
        assert updates(run) == step - 1
    again = Several(processes, [*arguments, *(["--resume"] if step else [])], tmp_path / "again", 2)
    assert again.wait() == [0, 0], again.said
    (assert_same_run if world == 2 else assert_close_run)(run, whole[0])


def test_bad_input_of_one_process_is_said_and_nothing_is_written(processes, acdc_root, tmp_path):
    damaged = shutil.copytree(acdc_root, tmp_path / "damaged")
    path = next(damaged.glob("*/*_frame01.nii.gz"))
    path.write_bytes(path.read_bytes()[:200])
    root = tmp_path / "run"
    several = Several(
        processes, command(acdc_root, root), tmp_path / "logs", 2, own={1: ["--data", damaged, "--timeout=6"]}
    )
    assert several.wait() == [2, 2], several.said
    assert several.said.count("error: ") == 1 and path.name in several.said and "Traceback" not in several.said
    assert not root.exists()


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_a_run_ends_as_if_left_alone(kills, processes, acdc_root, whole, tmp_path):
    """With any number of processes at each start up to rounding, in every other run; with two each time bit for bit."""
    rng, done, lives = random.Random(0), 0, 0
    undisturbed, seconds = whole
    while done < kills:
        run, numbers = RunFolder(tmp_path / f"run{lives}"), ([1, 2, 3], [2])[lives % 2]
        lives += 1
        for attempt in range(rng.randint(3, 8)):  # kills in this run's life; it may end before
            more = ["--resume"] if run.config.is_file() else []
            world = 2 if attempt == 0 else rng.choice(numbers)
            victim, faults = rng.randrange(world), {}
            if at_update := rng.random() < 0.5:
                place = updates(run)
                faults = {victim: ("killed", rng.randint(place + 1, min(place + 3, sum(STEPS.values()))))}
            logs = tmp_path / f"logs{lives}-{attempt}"
            several = Several(processes, command(acdc_root, run.root, *more), logs, world, faults)
            if not at_update:
                time.sleep(rng.uniform(0.1, 1) * seconds)
                several.kill(*rng.choice(([victim], [])))
            codes = several.wait()
            assert set(codes) <= {0, 2, -9} and "Traceback" not in several.said, several.said
            if codes == [0] * world:
                break
            done += 1
            if done == kills:
                break
        more = ["--resume"] if run.config.is_file() else []
        arguments = command(acdc_root, run.root, *more)
        several = Several(processes, arguments, tmp_path / f"logs{lives}", rng.choice(numbers))
        assert set(several.wait()) == {0}, several.said
        (assert_same_run if numbers == [2] else assert_close_run)(run, undisturbed)
        assert not [path for path in run.root.rglob(".*") if path.name != run.job.name]
