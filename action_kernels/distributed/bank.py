"""A memory bank divided among processes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..dtypes import INTEGER
from ..memory_bank import MemoryBank
from .agreement import Given, Setting, agree
from .exchange import exchange


class ShardedMemoryBank(nn.Module):
    """The rows of one :class:`~action_kernels.MemoryBank`, slot ``s`` of which lies in the process of rank ``s % R``.

    R processes hold a bank R times as large as one of them could. They push together; afterwards the slots hold what
    they would in a single bank to which the rows of all processes had been pushed, in the order of their ranks. The
    losses of this package take it for their bank. ``len`` is the rows stored in all processes, as for any bank.

    ``state_dict`` is this process's part: it loads into a bank of the same capacity in the process of the same rank
    among as many, and raises elsewhere. For another number of processes, :meth:`gather` the bank into one
    ``MemoryBank``, save that, and :meth:`scatter` it from one process.

    Args:
        capacity: rows kept by all processes together, at least one for each.
        dim: features per row, D.
        labeled: keep an integer class with every row.
        dtype: storage dtype.
        normalize: scale rows to unit length when they are stored (before rounding to ``dtype``).
        device: where this process's part lies at first.
        group: the processes; none: all of them.

    Raises:
        ValueError: as for ``MemoryBank``, or there are fewer slots than processes.
    """

    def __init__(
        self,
        capacity: int,
        dim: int,
        labeled: bool = False,
        dtype: torch.dtype = torch.float32,
        normalize: bool = True,
        device: torch.device | str | None = None,
        *,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.group, self.rank, self.world = group, dist.get_rank(group), dist.get_world_size(group)
        if not hasattr(capacity, "__index__") or capacity < self.world:
            raise ValueError(
                f"capacity must be a whole number and at least 1 for each of {self.world} processes, got {capacity!r}"
            )
        self.capacity = int(capacity)
        # No child: its state is loaded together with this module's, or not at all.
        self._part = [MemoryBank(self._share(self.capacity, self.rank), dim, None, labeled, dtype, normalize, device)]
        self._pushed = 0

    @property
    def shard(self) -> MemoryBank:
        """This process's part: slot s of the bank is its slot ``s // R``."""
        return self._part[0]

    @property
    def dim(self) -> int:
        return self.shard.dim

    @property
    def labeled(self) -> bool:
        return self.shard.labeled

    def __len__(self) -> int:
        """Rows stored so far, in all processes together."""
        return min(self._pushed, self.capacity)

    @property
    def rows(self) -> Tensor:
        """View [m, D] of the rows stored in this process, in the order of :attr:`slots`."""
        return self.shard.rows

    @property
    def labels(self) -> Tensor | None:
        """View [m] of their classes; None for a bank without labels."""
        return self.shard.labels

    @property
    def slots(self) -> Tensor:
        """[m] int64: where in the whole bank the rows of this process lie; losses name rows by their slots."""
        places = torch.arange(len(self.shard), dtype=torch.int64, device=self.rows.device)
        return places * self.world + self.rank

    @torch.no_grad()
    def push(self, rows: Tensor, labels: Tensor | None = None) -> None:
        """Store the rows of all processes, in the order of their ranks; the oldest give way. A collective call.

        Args:
            rows: [B, D] of this process; any B, 0 too, and another one on every process; the same dtype on all.
            labels: [B] integers, for a labelled bank and only there.

        Raises:
            ValueError: a shape, dtype or device does not fit, here or on another process. Every process raises then,
                and none has stored anything.
        """

        def given() -> Given:
            self.shard.check(rows, labels)
            return Given([len(rows)], {**self._settings(), "dtype": rows.dtype})

        names = (*self._settings(), "dtype")
        table = agree("ShardedMemoryBank.push", "rows", names, given, self.group, self.rows)
        starts = list(itertools.accumulate((count for count, _ in table), initial=self._pushed))
        spans = list(itertools.pairwise(starts))
        begin, end = spans[self.rank]
        turns = torch.arange(begin, end, dtype=torch.int64, device=rows.device)
        order = (turns % self.capacity % self.world).argsort(stable=True)  # by owner
        columns = [rows[order]] if labels is None else [rows[order], labels.to(torch.int64)[order]]
        sent = [self._owned(end, rank) - self._owned(begin, rank) for rank in range(self.world)]
        received = [self._owned(b, self.rank) - self._owned(a, self.rank) for a, b in spans]
        self.shard.push(*exchange(columns, sent, received, self.group))
        self._pushed = starts[-1]

    def clear(self) -> None:
        """Forget all rows; every process must."""
        self.shard.clear()
        self._pushed = 0

    @torch.no_grad()
    def gather(self, to: int = 0) -> MemoryBank | None:
        """The whole bank in the process of rank ``to``, None in the others. A collective call."""

        def given() -> Given:
            self._check_rank("to", to)
            return Given([len(self.shard)], {**self._settings(), "to": to})

        table = agree("ShardedMemoryBank.gather", "banks", (*self._settings(), "to"), given, self.group, self.rows)
        counts = [count for count, _ in table]
        sent = [counts[self.rank] if rank == to else 0 for rank in range(self.world)]
        received = counts if self.rank == to else [0] * self.world
        labels = self.labels
        columns = [self.rows, self.slots] if labels is None else [self.rows, self.slots, labels]
        rows, slots, *classes = exchange(columns, sent, received, self.group)
        if self.rank != to:
            return None
        shard = self.shard
        whole = MemoryBank(
            self.capacity, shard.dim, None, shard.labeled, rows.dtype, shard.normalize, shard.features.device
        )
        state = whole.state_dict()
        state["features"][slots] = rows
        if classes:
            state["classes"][slots] = classes[0]
        whole.load_state_dict({**state, "level": self._level(self._pushed, self.capacity)})
        return whole

    @torch.no_grad()
    def scatter(self, whole: MemoryBank | None, source: int = 0) -> None:
        """Hold the rows of ``whole``, a bank in the process of rank ``source``, in its slots. A collective call.

        Args:
            whole: of the same capacity, D and dtype, with labels if this bank has some; on other ranks it is not read.
            source: rank of the process that has it.

        Raises:
            ValueError: it does not fit, on any process; every process raises then.
        """

        def given() -> Given:
            self._check_rank("source", source)
            if self.rank == source:
                self._check_whole(whole)
            counts = whole.level.tolist() if self.rank == source and whole is not None else [0, 0]
            return Given(counts, {**self._settings(), "source": source})

        table = agree("ShardedMemoryBank.scatter", "banks", (*self._settings(), "source"), given, self.group, self.rows)
        following, filled = table[source]
        everyone = [len(range(rank, filled, self.world)) for rank in range(self.world)]
        sent = everyone if self.rank == source else [0] * self.world
        received = [everyone[self.rank] if rank == source else 0 for rank in range(self.world)]
        shard = self.shard
        columns = [shard.features[:0]] if shard.classes is None else [shard.features[:0], shard.classes[:0]]
        if self.rank == source and whole is not None:
            slots = torch.arange(filled, dtype=torch.int64, device=whole.features.device)
            order = (slots % self.world).argsort(stable=True)
            stored = [whole.rows] if whole.labels is None else [whole.rows, whole.labels]
            columns = [x[order] for x in stored]
        rows, *classes = exchange(columns, sent, received, self.group)
        self._pushed = filled if filled < self.capacity else self.capacity + following
        state = shard.state_dict()
        state["features"][: len(rows)] = rows
        if classes:
            state["classes"][: len(rows)] = classes[0]
        level = self._level(self._owned(self._pushed, self.rank), shard.capacity)
        shard.load_state_dict({**state, "level": level})

    def extra_repr(self) -> str:
        return f"{self.capacity} in {self.world} processes, of which this is rank {self.rank}: {self.shard}"

    # ------------------------------------------------------------------------------------------------------- places

    def _share(self, slots: int, rank: int) -> int:
        """How many of the first slots a process has."""
        return len(range(rank, slots, self.world))

    def _owned(self, pushed: int, rank: int) -> int:
        """How many of the rows pushed up to then a process has got."""
        turns, slots = divmod(pushed, self.capacity)
        return turns * self._share(self.capacity, rank) + self._share(slots, rank)

    @staticmethod
    def _level(pushed: int, capacity: int) -> Tensor:
        return torch.tensor([pushed % capacity, min(pushed, capacity)], dtype=torch.int64, device="cpu")

    def _settings(self) -> dict[str, Setting]:
        """What the processes' banks must have in common; a push or a state of one alone shows here."""
        shard = self.shard
        return {
            "capacity": self.capacity,
            "dim": shard.dim,
            "labeled": shard.labeled,
            "normalize": shard.normalize,
            "the bank's dtype": shard.features.dtype,
            "the number of rows pushed": self._pushed,
        }

    def _check_rank(self, name: str, rank: int) -> None:
        if not 0 <= rank < self.world:
            raise ValueError(f"{name} must be the rank of one of {self.world} processes, got {rank}")

    def _check_whole(self, whole: MemoryBank | None) -> None:
        mine = self.shard
        if not isinstance(whole, MemoryBank) or whole.groups is not None:
            raise ValueError(f"whole must be a MemoryBank without groups on the source, got {whole!r}")
        for name, theirs, ours in (
            ("capacity", whole.capacity, self.capacity),
            ("dim", whole.dim, mine.dim),
            ("labeled", whole.labeled, mine.labeled),
            ("dtype", whole.features.dtype, mine.features.dtype),
            ("device", whole.features.device, mine.features.device),
        ):
            if theirs != ours:
                raise ValueError(f"whole must have this bank's {name} {ours}, got {theirs}")

    # -------------------------------------------------------------------------------------------------------- state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ShardedMemoryBank:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        unreal = self.rows.is_meta
        self.shard._apply(fn, recurse)  # noqa: SLF001
        if unreal and not self.rows.is_meta:  # as the part has done
            self._pushed = 0
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self.shard._save_to_state_dict(destination, prefix, keep_vars)  # noqa: SLF001
        destination[prefix + "place"] = self._place()

    def _place(self) -> Tensor:
        """Next slot and rows stored of the whole bank; its capacity; rank, and processes: [5]."""
        following, filled = self._level(self._pushed, self.capacity).tolist()
        place = [following, filled, self.capacity, self.rank, self.world]
        return torch.tensor(place, dtype=torch.int64, device="cpu")

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "place"
        place = state_dict.get(key)
        if place is None:
            missing_keys.append(key)
            return
        if not isinstance(place, Tensor) or place.dtype not in INTEGER or place.shape != (5,):
            error_msgs.append(f"{key}: must be five integers, got {place!r}")
            return
        following, filled, *layout = place.tolist()
        if layout != [self.capacity, self.rank, self.world]:
            capacity, rank, world = layout
            error_msgs.append(
                f"{key}: the state is rank {rank}'s of {world} with {capacity} slots, this bank is rank {self.rank}'s "
                f"of {self.world} with {self.capacity}: gather a bank into one before you save it, and scatter that"
            )
            return
        rest = {name: value for name, value in state_dict.items() if name != key}
        wrong = len(missing_keys), len(error_msgs)
        self.shard._load_from_state_dict(  # noqa: SLF001
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if wrong == (len(missing_keys), len(error_msgs)):
            self._pushed = filled if filled < self.capacity else self.capacity + following
