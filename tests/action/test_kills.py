"""Runs that are killed at any moment and resumed end as one that was left alone; ``ACTION_KILLS``: how many kills."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from placeholders import instead_of_figures

from action import train
from action.run_folder import RunFolder, load_checkpoint

KILLS = int(os.environ.get("ACTION_KILLS", "4"))
SHORT = [
    "--labeled=2",
    "--model.channels=[4,6,8]",
    "--model.embedding=8",
    "--model.window=16",
    "--model.stride=8",
    "--model.pooled=4",
    "--global_distillation.iterations=2",
    "--local_distillation.iterations=2",
    "--anatomical_contrast.iterations=3",
    "--anatomical_contrast.queries=8",
    "--anatomical_contrast.keys=8",
    "--anatomical_contrast.negatives_per_query=8",
    "--evaluation.every=2",
    "--evaluation.checkpoint_every=2",
    "--device=cpu",
]
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


def child(arguments, root, dies_at, log):
    """Train, and die just before the operation number ``dies_at`` on the run's files (0: none), or report the count."""
    torch.set_num_threads(1)
    done = 0

    def watch(event, details):
        nonlocal done
        writes = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(details[0]).startswith(root):
            done += 1
            if done == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

    instead_of_figures(pytest.MonkeyPatch())
    with open(log, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        sys.addaudithook(watch)
        train.main(arguments)
        print(f"\n{done}", file=file)


@pytest.fixture(scope="module")
def processes():
    """Children that begin with everything imported: a start from nothing would take seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["action.train", "test_kills"])
    with pytest.MonkeyPatch.context() as patch:  # the server looks for the modules by its environment alone
        patch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, sys.path)))
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


def start(processes, arguments, root, dies_at=0):
    log = root.with_suffix(".log")
    process = processes.Process(target=child, args=([*map(str, arguments)], str(root), dies_at, str(log)))
    process.start()
    return process, log


def finish(processes, arguments, root):
    """Let a run end by itself; the number of its operations on files, and its seconds."""
    began = time.monotonic()
    process, log = start(processes, arguments, root)
    process.join(120)
    assert process.exitcode == 0, log.read_text()
    return int(log.read_text().splitlines()[-1]), time.monotonic() - began


def next_start(root, fresh):
    """What a user would type: the same command again, --resume once there is something to resume."""
    return ["--resume", f"--output={root}"] if RunFolder(root).config.is_file() else fresh


def assert_equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def assert_same_run(one: RunFolder, other: RunFolder):
    assert one.metrics.read_bytes() == other.metrics.read_bytes()
    assert json.loads(one.summary.read_text()) == json.loads(other.summary.read_text())
    for path in ("latest", "best"):
        assert_equal(*(load_checkpoint(getattr(run, path), torch.device("cpu")) for run in (one, other)))
    left = [path for run in (one, other) for path in run.root.rglob(".*")]
    assert not left


def test_killed_runs_end_as_one_that_was_left_alone(processes, acdc_root, tmp_path):
    def command(root):
        return ["--data", acdc_root, *SHORT, f"--output={root}"]

    whole = tmp_path / "whole"
    operations, seconds = finish(processes, command(whole), whole)
    rng = random.Random(0)
    kills = lives = 0
    while kills < KILLS:
        root: Path = tmp_path / f"run{lives}"
        lives += 1
        for attempt in range(rng.randint(3, 8)):  # kills in this run's life; it may end before
            at_operation = kills % 2 == 0
            share = rng.uniform(0, 0.9) if attempt == 0 else rng.uniform(0, 0.5)  # of what a whole run takes
            dies_at = 1 + int(share * operations) if at_operation else 0
            process, log = start(processes, next_start(root, command(root)), root, dies_at)
            if not at_operation:
                process.join(share * seconds)
                process.kill()
            process.join(120)
            assert process.exitcode in (0, -signal.SIGKILL), log.read_text()
            if process.exitcode == 0:
                break
            kills += 1
            if kills == KILLS:
                break
        finish(processes, next_start(root, command(root)), root)
        assert_same_run(RunFolder(root), RunFolder(whole))
    print(f"{kills} kills in {lives} runs")


def test_an_overwriting_run_can_be_killed_anywhere(processes, acdc_root, tmp_path):
    """Old or new settings, never a mixture, and one flag goes on."""
    fresh = ["--data", acdc_root, "--method=supervised", "--labeled=2", "--baseline.iterations=1", *SHORT[1:6]]
    fresh += ["--device=cpu"]
    whole, root = tmp_path / "whole", tmp_path / "run"
    finish(processes, [*fresh, f"--output={whole}"], whole)
    operations, _ = finish(processes, [*fresh, f"--output={root}", "--seed=1"], root)
    for dies_at in random.Random(1).sample(range(1, operations), max(3, KILLS // 4)):
        process, log = start(processes, [*fresh, f"--output={root}", "--overwrite"], root, dies_at)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, log.read_text()
    finish(processes, [*fresh, f"--output={root}", "--overwrite"], root)
    assert_same_run(RunFolder(root), RunFolder(whole))
