"""Memory that a function takes, counted by the tensors it makes; tensors without data will do."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Allocations(TorchDispatchMode):
    """Every storage that is made inside of it, and when it goes."""

    def __init__(self) -> None:
        super().__init__()
        self._events: list[tuple[int, int]] = []  # (number of the storage, bytes that it takes or gives back)
        self._numbers: dict[int, int] = {}  # of storages that are there

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(x, Tensor) and (storage := x.untyped_storage())._cdata not in self._numbers:
                number, size = len(self._events), storage.nbytes()
                self._numbers[storage._cdata] = number
                self._events.append((number, size))
                weakref.finalize(storage, self._gone, storage._cdata, number, size)
        return result

    def _gone(self, address: int, number: int, size: int) -> None:
        del self._numbers[address]
        self._events.append((number, -size))

    def held(self) -> int:
        """Bytes of what is still there."""
        return sum(size for _, size in self._events)

    def peak(self, results: Iterable[Tensor]) -> int:
        """The most bytes that were held at a time, but for the results."""
        kept = {self._numbers.get(x.untyped_storage()._cdata) for x in results}
        held = most = 0
        for number, size in self._events:
            held += 0 if number in kept else size
            most = max(most, held)
        return most
