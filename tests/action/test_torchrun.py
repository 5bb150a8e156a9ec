"""Trainings that torchrun starts, and starts again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from test_ranks import FLAGS

from action.run_folder import RunFolder, load_checkpoint
from action.train import main


def torchrun(run, data_root, processes, *more, launch=()):
    """A training on several processes, as a started program."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--max-restarts=1"]
    flags = [*FLAGS, f"--data={data_root}", f"--output={run.root}", *more]
    return subprocess.Popen(
        [*launcher, *launch, "-m", "action.train", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def process_of(rank, parent):
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (folder / "environ").read_bytes().split(b"\0")
            ours = f"PPid:\t{parent}\n" in (folder / "status").read_text()
            if ours and f"RANK={rank}".encode() in environment:
                return int(folder.name)
    return None


def wait_for_checkpoint(run, process):
    deadline = time.monotonic() + 200
    while not run.latest.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)


def test_torchrun_trains_one_run_and_goes_on_with_another_number(acdc_root, tmp_path):
    run = RunFolder(tmp_path / "run")
    process = torchrun(run, acdc_root, 2)
    said, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    assert said.count("labelled (") == 1 and said.count("written to") == 1
    assert log.count("local_distillation (2/3): 4 of 4") == 1
    assert len(run.metrics.read_text().splitlines()) == 1 + 12 and run.summary.is_file()
    for path in (run.summary, run.latest):
        path.unlink()  # as killed before the last checkpoint
    process = torchrun(run, acdc_root, 3, "--resume")
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    assert len(run.metrics.read_text().splitlines()) == 1 + 12 and run.summary.is_file()


def test_another_run_is_left_alone_however_often_torchrun_starts(acdc_root, tmp_path):
    run = RunFolder(tmp_path / "run")
    main([*FLAGS, f"--data={acdc_root}", f"--output={run.root}", "--method=supervised"])
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    process = torchrun(run, acdc_root, 2, "--method=supervised", "--seed=3")
    _, log = process.communicate(timeout=300)
    assert process.returncode != 0 and "exists: continue it with --resume" in log
    assert log.count("error: ") == 2, log  # once for each of torchrun's two tries
    assert {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(sys.platform != "linux", reason="finds a process by its environment")
def test_an_interrupted_start_leaves_no_process_and_a_whole_checkpoint(acdc_root, tmp_path):
    run = RunFolder(tmp_path / "run")
    process = torchrun(run, acdc_root, 2, "--anatomical_contrast.iterations=1000", "--evaluation.checkpoint_every=1")
    wait_for_checkpoint(run, process)
    trainings = [process_of(rank, process.pid) for rank in range(2)]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
    _, log = process.communicate(timeout=100)
    assert process.returncode != 0 and log.count("interrupted") == 1 and "error: " not in log, log
    assert not [pid for pid in trainings if Path(f"/proc/{pid}").exists()]
    assert load_checkpoint(run.latest, torch.device("cpu"))["format"] == 2
    assert not run.lock.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="finds a process by its environment")
def test_two_machines_train_the_run_of_one_though_a_process_is_killed(acdc_root, tmp_path):
    """Two torchruns, as on two machines; a process of the second one dies, and both start theirs again."""
    more = ["--anatomical_contrast.iterations=30", "--evaluation.checkpoint_every=4"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    run, one = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "one")
    launch = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint={address}"]
    both = [torchrun(run, acdc_root, 1, *more, launch=launch) for _ in range(2)]
    wait_for_checkpoint(run, both[0])
    victim = next(pid for process in both if (pid := process_of(1, process.pid)))
    os.kill(victim, signal.SIGKILL)
    ends = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert str(ends).count("written to") == 1 and "error: " not in str(ends)
    undisturbed = torchrun(one, acdc_root, 2, *more)
    _, log = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, log
    ours, theirs = (load_checkpoint(run.latest, torch.device("cpu"))["learner"] for run in (run, one))
    assert [name for name, value in theirs.items() if not torch.equal(ours[name], value)] == []
    assert run.metrics.read_bytes() == one.metrics.read_bytes()
