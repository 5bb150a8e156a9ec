"""A training on several processes: what each of them computes, and what they tell each other.

Every process holds the same networks and banks, draws the same batch and computes the same losses; it differs in the
slices that it passes through the networks, its own share of the batch. What the networks make of all shares is joined
before a loss is computed, so that every loss is that of the whole batch, and the gradient of a process is that of its
own share. Sums of these are the gradient: the run is that of one process, whatever their number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from action.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Ranks:
    """The processes of a training.

    Args:
        rank: of this process, from 0.
        world: how many there are.
        weights: of their shares of a batch; none: all alike.

    Attributes:
        batch: slices of the batch whose share was taken last, on all processes together.
    """

    def __init__(self, rank: int = 0, world: int = 1, weights: Sequence[float] = ()) -> None:
        self.rank, self.world = rank, world
        self._weights = tuple(weights) or (1.0,) * world
        self.batch = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.rank == 0

    def sizes(self, count: int) -> list[int]:
        """Slices of a batch of ``count`` that each process has: neighbours, in the order of the ranks."""
        total, seen, ends = sum(self._weights), 0.0, [0]
        for weight in self._weights:
            seen += weight
            ends.append(round(count * seen / total))
        return [end - begin for begin, end in pairwise(ends)]

    def own(self, x: Tensor) -> Tensor:
        """This process's share of a batch [B, ...]."""
        self.batch = len(x)
        return x.split(self.sizes(len(x)))[self.rank] if self.world > 1 else x

    def join(self, x: Tensor, sizes: Sequence[int], dim: int = 0) -> Tensor:
        """The shares of all processes, differentiable in this one's.

        Args:
            x: this process's share.
            sizes: entries along ``dim`` that each process has.
            dim: along which they are joined.
        """
        if self.world == 1:
            return x
        join: Callable[..., Tensor] = _Join.apply
        return join(x.movedim(dim, 0), tuple(sizes), self.rank).movedim(0, dim)

    def joined(self, x: Tensor, dim: int = 0) -> Tensor:
        """What the networks have made of the shares of a batch, in its order."""
        return self.join(x, self.sizes(self.batch), dim) if self.world > 1 else x

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all shares."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.world == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def wait_at_most(self, seconds: float) -> None:
        """From now on, give up on a process that does not answer for so long."""

    def share_out(self, items: Sequence[Item], function: Callable[[Item], Result]) -> list[Result]:
        """``function`` of all items, each computed by one process."""
        if self.world == 1:
            return [function(item) for item in items]
        ours = [function(item) for item in items[self.rank :: self.world]]
        parts = self.all_say(ours)
        return [parts[i % self.world][i // self.world] for i in range(len(items))]

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """A block that the first process goes through before the others; it fails on all if it fails on one."""
        if not self.first:
            self._check(None)
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        if self.first:
            self._check(error)
            error = None
        self._check(error)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that fails on all processes if it fails on one.

        Raises:
            OtherRankFailed: it has failed elsewhere; the process that has the reason says it.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        self._check(error)

    @contextmanager
    def alike(self) -> Iterator[None]:
        """A block whose bad input is the same on all processes, since it comes of what they compute alike."""
        try:
            yield
        except InputError:
            if self.first:
                raise
            raise OtherRankFailed from None

    def first_says(self, value: Item) -> Item:
        """What the first process says, on all."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values, 0)
        return values[0]

    def all_say(self, value: Item) -> list[Item]:
        """What each process says, in the order of the ranks."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def compare(self, **values: object) -> None:
        """Refuse to go on with processes that differ.

        Raises:
            InputError: names what differs.
            OtherRankFailed: on all but the first of them.
        """
        with self.together():
            if (first := self.first_says(values)) != values:
                names = [name for name in values if first.get(name) != values[name]]
                raise InputError(
                    f"rank {self.rank} has other {' and '.join(names)} than rank 0: all processes must see the same "
                    "files"
                )

    def _check(self, error: Exception | None) -> None:
        """Raise the first process's error that there is, on that process; all processes ask at the same time."""
        failed = self.all_say(error is not None)
        if error is not None and self.rank == failed.index(True):
            raise error
        if any(failed):
            raise OtherRankFailed


class OtherRankFailed(Exception):
    """Another process has failed, and says why."""


ALONE = Ranks()


def speaks() -> bool:
    """Whether this process shows progress and says what all know: the first of several, or the only one."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def gathered(x: Tensor) -> list[Tensor]:
    """The tensors of all processes, of one shape, in the order of the ranks: the same bits on each."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    return parts


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...], rank: int) -> Tensor:
        ctx.share = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        padded = x.new_zeros((max(sizes), *x.shape[1:]))  # not every backend of PyTorch's gathers uneven parts
        padded[: len(x)] = x
        return torch.cat([part[:size] for part, size in zip(gathered(padded), sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[ctx.share], None, None  # of a loss that all processes compute alike
