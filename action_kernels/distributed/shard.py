"""The part of a divided bank that this process holds, and what is checked before queries visit it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..backends import select
from ..operators import arguments
from ..operators.temperature import Temperature, checked
from .bank import ShardedMemoryBank


class Shard(NamedTuple):
    """Row ``place`` of the part of rank r is slot ``place * world + r`` of the bank."""

    rows: Tensor  # [m, D]
    labels: Tensor | None  # [m]
    group: dist.ProcessGroup | None
    rank: int
    world: int

    def slots(self, places: Tensor) -> Tensor:
        """Slots of places; -1 stays."""
        return torch.where(places >= 0, places * self.world + self.rank, -1)

    def places(self, slots: Tensor) -> Tensor:
        """Places of slots, -1 for those of other parts and for what is no slot."""
        places = torch.div(slots, self.world, rounding_mode="floor")
        here = (slots >= 0) & (slots % self.world == self.rank) & (places < len(self.rows))
        return torch.where(here, places, -1)


def shard_of(
    bank: ShardedMemoryBank | Tensor, bank_labels: Tensor | None, group: dist.ProcessGroup | None, labeled: bool
) -> Shard:
    """The part of this process, with its labels where queries have some.

    Raises:
        ValueError: labels or a process group beside a bank that has its own.
    """
    if isinstance(bank, ShardedMemoryBank):
        if bank_labels is not None:
            raise ValueError("bank_labels must not be given with a ShardedMemoryBank, which has its own")
        if group is not None and group != bank.group:
            raise ValueError("group must be left out, or be that of the ShardedMemoryBank")
        rows, bank_labels, group = bank.rows, bank.labels if labeled else None, bank.group
    else:
        rows = bank
    return Shard(rows, bank_labels, group, dist.get_rank(group), dist.get_world_size(group))


def group_of(bank: ShardedMemoryBank | Tensor, group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """The processes of a call, before anything is checked: as :func:`shard_of` finds them."""
    return bank.group if isinstance(bank, ShardedMemoryBank) else group


def check_rows(**rows: Tensor) -> None:
    """As the operators do, but without groups.

    Raises:
        ValueError: rows do not fit each other or are no [rows, D].
    """
    arguments.check_rows(**rows)
    (first_name, first), *_ = rows.items()
    if first.dim() != 2:
        raise ValueError(f"{first_name} must be [N, D], got shape {tuple(first.shape)}: call once for each group")
    for name, x in rows.items():
        arguments.check_features(first_name, first, name, x)


def check_chunk(chunk: int) -> None:
    arguments.check_whole("chunk", chunk)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")


def constant(name: str, temp: Temperature, rows: Tensor) -> float:
    """A temperature that is a number.

    Raises:
        ValueError: it is a tensor, or no temperature.
    """
    if isinstance(temp, Tensor):
        raise ValueError(
            f"{name} must be a number over a divided bank, got a tensor: its gradient is not computed here"
        )
    value = checked(name, temp, rows, learnable=False)
    assert isinstance(value, float)
    return value


def check_backend(operator: str, *rows: Tensor, function: str = "") -> None:
    """Whether a backend takes such rows; one that was asked for by name may not, and says so before queries travel.

    Raises:
        RuntimeError: it does not.
    """
    select(rows[0].device.type, tuple(x.dtype for x in rows), operator, 0, function)


def backend_for(operator: str, table: Sequence[Sequence[int]], chunk: int, *rows: Tensor, function: str = "") -> str:
    """The backend of all that a call runs, by name: one for all processes, whose machines are alike.

    Scores of one part meet log-sum-exps that others have found: rows must be rounded in the same way everywhere, and in
    both passes, which a backend may not have both.

    Args:
        operator: that runs.
        table: queries of every process, and rows of its part.
        chunk: queries that visit at once.
        rows: queries first, the bank last.
        function: of the operator, that must be there too.
    """
    queries, longest = (max(min(chunk, sum(n for n, _ in table)), 1), max(m for _, m in table))
    work = queries * longest * rows[0].shape[-1] if rows[0].device.type == "cuda" else 0
    found = select(rows[0].device.type, tuple(x.dtype for x in rows), operator, work, function)
    return found.__name__.rpartition(".")[2]


def is_whole(table: Sequence[Sequence[int]], backend: str) -> bool:
    """Whether one process has all rows, so that an operator for a whole bank does all in one pass.

    The reference stores every similarity at once: with it, queries visit in chunks all the same.
    """
    return len(table) == 1 and backend != "reference"


def wants_grad(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad
