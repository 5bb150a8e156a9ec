"""The commands for Slurm on the page about several processes, with programs that do what theirs would."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from test_ranks import FLAGS

from action.run_folder import RunFolder

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "train-on-several.md"
COMMANDS = {
    "torchrun on each machine": "torchrun",
    "a task for each process": "SLURM_PROCID",
}
PROGRAMS = {
    # Starts the tasks of all machines, numbered as Slurm does, and fails if one of them does.
    "srun": """#!/bin/bash
while [[ $1 == --* ]]; do
    [[ $1 == --nodes ]] && nodes=$2
    [[ $1 == --ntasks-per-node ]] && tasks=$2
    shift 2
done
export SLURM_NTASKS=$((nodes * tasks))
for ((i = 0; i < SLURM_NTASKS; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$((i % tasks)) SLURM_NODEID=$((i / tasks)) "$@" &
    started+=($!)
done
for task in "${started[@]}"; do wait "$task" || failed=1; done
exit ${failed:-0}
""",
    "scontrol": """#!/bin/bash
[[ $* == "show hostnames node[1-2]" ]] && printf '127.0.0.1\\nnowhere\\n'
""",
}


@pytest.mark.skipif(sys.platform != "linux", reason="Slurm runs on Linux")
@pytest.mark.parametrize("word", COMMANDS.values(), ids=COMMANDS)
def test_tasks_of_two_machines_train_one_run(word, acdc_root, tmp_path):
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    run = RunFolder(tmp_path / "run")
    flags = " ".join([*FLAGS, f"--data={acdc_root}", f"--output={run.root}", "--method=supervised"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (command,) = (block for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL) if word in block)
    for there, here in (("29500", port), ("--config run.yaml", flags), ("node 4", "node 1")):
        assert there in command
        command = command.replace(there, here)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    job = {"PATH": path, "SLURM_JOB_NODELIST": "node[1-2]", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", command], env={**os.environ, **job}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("labelled (") == 1 and done.stdout.count("written to") == 1, done.stdout
    assert len(run.metrics.read_text().splitlines()) == 1 + 4 and run.summary.is_file()
