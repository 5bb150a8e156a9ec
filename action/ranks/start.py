"""How the processes of a training meet, and what the others say when one of them is lost."""

from __future__ import annotations

import os
import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]  # PyTorch lists none of them

from action.errors import InputError
from action.ranks import ALONE, OtherRankFailed, Ranks

MEET_WITHIN = 600.0
"""Seconds until all processes must have met, and until their settings say how long they wait for each other."""

LAST_WORDS = 5.0
"""Seconds within which a process that is there notices that another one is lost, once one has."""


@contextmanager
def started() -> Iterator[Ranks]:
    """The processes that ``torchrun`` has started, which meet here, or this one alone.

    Raises:
        OtherRankFailed: another one has ended too early, and says why, or a third one says it.
        InputError: the processes cannot talk to each other; names those that do not answer.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    ranks: StartedRanks | None = None
    try:
        store, rank, world = next(rendezvous("env://"))
        ranks = StartedRanks(rank, world, _meet(store, rank, world))
        ranks.wait_at_most(MEET_WITHIN)
        with open(os.devnull, "w") as nowhere, nullcontext() if ranks.first else redirect_stdout(nowhere):
            yield ranks
    except (RuntimeError, dist.DistError) as error:
        cause = " ".join(str(error).split())[:300]
        if not (isinstance(error, dist.DistError) or any(word in cause for word in ("gloo", "NCCL", "by peer"))):
            if ranks:
                ranks.post(_SPEAKS)
            raise
        raise (ranks.lost(cause) if ranks else _unreachable(cause)) from error
    except BaseException:
        if ranks:
            ranks.post(_SPEAKS)
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def jobs(ranks: Ranks) -> list[str]:
    """Which ``torchrun`` programs have started the processes, and start them again after a failure; none: no such."""
    return sorted({job for job in ranks.all_say(_job()) if job is not None})


def _job() -> str | None:
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return f"{platform.node()} {os.getppid()} {os.environ['TORCHELASTIC_RUN_ID']}"


_SPEAKS, _LOST = "speaks", "lost"  # why a process ends: for a reason that it says; because others do not answer


class StartedRanks(Ranks):
    """Processes that know each other by a store, which works as long as the program that has started them."""

    def __init__(self, rank: int, world: int, store: Store) -> None:
        super().__init__(rank, world)
        self._store, self._seconds = store, 0.0

    def wait_at_most(self, seconds: float) -> None:
        seconds = self.first_says(seconds) if dist.is_initialized() else seconds
        if seconds == self._seconds:
            return
        if dist.is_initialized():
            dist.destroy_process_group()
        self._seconds = seconds
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=PrefixStore(f"waits {seconds}", self._store),
            rank=self.rank,
            world_size=self.world,
            timeout=timedelta(seconds=seconds),
        )

    def post(self, reason: str) -> None:
        """Tell the others why this process ends."""
        with suppress(RuntimeError):  # nobody is left to be told
            self._store.set(f"end {self.rank}", reason)

    def lost(self, cause: str) -> Exception:
        """What to raise when the others do not answer: one process says it, unless one that has ended has a reason."""
        self.post(_LOST)
        try:
            deadline = time.monotonic() + LAST_WORDS
            while "" in (ends := self._ends()) and time.monotonic() < deadline:
                time.sleep(0.05)
        except RuntimeError:  # who keeps the store is gone: the program that has started the processes, or rank 0
            if self.first or _job() is not None:
                return _unreachable(cause)
            return InputError(
                "rank 0, at which the processes meet, has ended: look at what it says, and start again with --resume"
            )
        if _SPEAKS in ends:
            return OtherRankFailed()
        if self.rank != ends.index(_LOST):
            time.sleep(LAST_WORDS)  # the one that says it may have noticed later
            return OtherRankFailed()
        silent = [rank for rank, end in enumerate(ends) if not end]
        if not silent:
            return _unreachable(cause)
        if "by peer" in cause:  # closed or reset
            return InputError(
                f"{_named(silent)} ended without a reason: killed, or out of memory; start again with --resume"
            )
        return InputError(
            f"{_named(silent)} did not answer for {self._seconds:g} seconds: see what that machine is doing, and start "
            "again with --resume, with a longer --timeout if it was only slow"
        )

    def _ends(self) -> list[str]:
        return [_read(self._store, f"end {rank}") for rank in range(self.world)]


def _meet(store: Store, rank: int, world: int) -> Store:
    """A part of the store that belongs to this start of the processes.

    A store outlives a failure, with the addresses of the processes that there were, and no two machines count alike how
    often they have started. So the first process lists who is there, until all have seen themselves on one list.

    Raises:
        InputError: some did not come; on one process.
        OtherRankFailed: on the others.
    """
    me, deadline, seen = uuid.uuid4().hex, time.monotonic() + MEET_WITHIN, list[str]()
    store.set(f"here {rank}", me)
    while me not in (agreed := _read(store, "agreed")):
        listed = _read(store, "listed")
        if rank == 0:
            here = " ".join(_read(store, f"here {other}") or "-" for other in range(world))
            if here != listed:
                store.set("listed", here)
            seen = [_read(store, f"seen {other}") for other in range(1, world)]
            if all(theirs == here for theirs in seen):
                store.set("agreed", here)
        elif me in listed:
            store.set(f"seen {rank}", listed)
        if time.monotonic() > deadline:
            if rank > 1 or (rank == 1 and me in listed):
                raise OtherRankFailed
            missing = [other for other, theirs in enumerate(seen, 1) if me not in theirs] or [0]
            raise InputError(f"{_named(missing)} did not start within {MEET_WITHIN:g} seconds: see what is said there")
        time.sleep(0.02)
    return PrefixStore(agreed.split()[0], store)


def _read(store: Store, key: str) -> str:
    """What the store has there; "": nothing yet."""
    return store.get(key).decode() if store.check([key]) else ""


def _named(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {' and '.join(map(str, ranks))}"


def _unreachable(cause: str) -> InputError:
    return InputError(
        f"the processes do not reach each other ({cause}): look at what the others say, and start again with --resume"
    )
