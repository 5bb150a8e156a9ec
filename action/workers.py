"""Work on files by several threads: unpacking and NumPy leave Python's lock to each other."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from action.data.notes import keeping, tell

MEMORY = 4 * 2**30
"""Bytes that a thread may need: a CT of 512 x 512 x 450 voxels in float32, several times."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """``function`` of all items, in their order, on as many threads as this process has cores and memory.

    Notes come in the order of the items, too. PyTorch computes on one thread within each: threads of its own on top
    would wait for one another.
    """
    workers = min(_most(), len(items))
    if workers < 2:
        yield from map(function, items)
        return

    def work(item: Item) -> tuple[Result, list[str]]:
        with keeping() as notes:
            return function(item), notes

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for result, notes in pool.map(work, items):
            tell(notes)
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # a worker's number holds for threads that begin later


def once(function: Callable[[], Result]) -> Callable[[], Result]:
    """``function``, called by the thread that asks first; the others wait for what it gives, as later calls get."""
    kept, lock = functools.cache(function), threading.Lock()

    def call() -> Result:
        with lock:
            return kept()

    return call


def _most() -> int:
    """Threads at the most, shared with the processes that ``torchrun`` has started beside this one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(cores, memory // MEMORY) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
