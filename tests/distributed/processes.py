"""Processes of gloo for a test: each runs the same checks, in order."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Check = Callable[[int, int], None]  # of rank and number of processes


def run(checks: Sequence[Check], world: int, folder: Path, detail: bool = False) -> None:
    """Every check in every process; with ``detail`` PyTorch compares the collectives of the processes.

    Raises:
        torch.multiprocessing.ProcessRaisedException: a check has failed.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "action_kernels.distributed"])
    arguments = checks, world, folder / "rendezvous", detail
    mp.start_processes(_process, arguments, world, start_method="forkserver")  # PyTorch is imported once for all


def _process(rank: int, checks: Sequence[Check], world: int, file: Path, detail: bool) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error", FutureWarning)  # whatever a version of PyTorch is about to drop
    if detail:
        os.environ["TORCH_DISTRIBUTED_DEBUG"] = "DETAIL"
        dist.set_debug_level_from_env()
    dist.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    for check in checks:
        torch.manual_seed(20230614)  # the same numbers on all of them
        check(rank, world)
    dist.destroy_process_group()
