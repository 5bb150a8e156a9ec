"""Trainings on several processes that a test starts, disturbs and waits for, as torchrun would start them.

The processes begin with everything imported, and the test holds the store by which they meet.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from placeholders import instead_of_figures

from action import train
from action.cli import run as run_command
from action.trainer import Trainer


def preloaded(*modules: str):
    """A context whose processes have these test modules and the training imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["action.train", *modules])
    with pytest.MonkeyPatch.context() as patch:  # the server looks for the modules by its environment alone
        patch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, sys.path)))
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


def run_out_of_memory():
    raise MemoryError("9 GB")


FAULTS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "out of memory": run_out_of_memory,
}


def child(rank, world, port, arguments, fault, log):
    """One process; ``fault``: what happens to it, and before which update of the run (0: when data are read)."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), TORCHELASTIC_USE_AGENT_STORE="True")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    instead_of_figures(patch)
    if fault:
        name, step = fault
        original, load = Trainer.train_step, train.load_data

        def train_step(self, *details):
            if self.step + 1 == step:
                FAULTS[name]()
            return original(self, *details)

        def load_data(*details):
            if step == 0:
                FAULTS[name]()
            return load(*details)

        patch.setattr(Trainer, "train_step", train_step)
        patch.setattr(train, "load_data", load_data)
    with open(log, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        sys.argv = ["action.train", *arguments]
        run_command(train.main)


class Several:
    """The processes of one start."""

    def __init__(self, context, arguments, logs: Path, world: int, faults=None, own=None) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = [logs / f"{rank}.log" for rank in range(world)]
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.processes = []
        for rank, log in enumerate(self.logs):
            given = [*map(str, [*arguments, *(own or {}).get(rank, ())])]
            details = rank, world, self.store.port, given, (faults or {}).get(rank), str(log)
            self.processes.append(context.Process(target=child, args=details))
            self.processes[-1].start()

    def wait(self, seconds: float = 120, *, but: tuple[int, ...] = ()) -> list[int | None]:
        """Exit codes, once all have ended but those named, which are killed then."""
        deadline = time.monotonic() + seconds
        for rank, process in enumerate(self.processes):
            if rank not in but:
                process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.kill()
        return codes

    def kill(self, *ranks: int) -> None:
        """Kill some processes, or all."""
        for rank in ranks or range(len(self.processes)):
            self.processes[rank].kill()
        for rank in ranks or range(len(self.processes)):
            self.processes[rank].join()

    @property
    def said(self) -> str:
        return "\n".join(log.read_text() for log in self.logs if log.is_file())
