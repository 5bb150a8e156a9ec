"""A first-in-first-out memory of feature rows, optionally with their classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class MemoryBank(nn.Module):
    """Ring buffer of the last ``capacity`` rows pushed.

    The buffer follows the module's device; its fill level is a Python integer, so neither pushing nor reading waits
    for a GPU. Rows are stored detached, as the paper's setting has it, and never share memory with what was pushed.
    :attr:`rows` and :attr:`labels` are views: a push overwrites them in place, so push after the backward pass of a
    loss that keeps the bank (``action_contrast``, ``anatomical_contrast``); autograd refuses otherwise.

    ``state_dict`` holds the rows, the labels and the fill level. As for any container, an empty bank is false.

    Args:
        capacity: rows kept, per group.
        dim: features per row, D.
        groups: one bank per group, filled in lockstep: rows are [G, B, D]. None: a single bank, rows [B, D].
        labeled: keep an integer class with every row.
        dtype: storage dtype; half precision halves the memory, and the operators read it as it is.
        normalize: scale rows to unit length when they are stored (before rounding to ``dtype``).
        device: where the buffer lies at first.

    Raises:
        ValueError: capacity, dim or groups < 1, or ``dtype`` is not a floating one.
    """

    features: Tensor  # [(G,) capacity, D], zero where nothing has been stored yet
    classes: Tensor | None  # [(G,) capacity] int64, -1 where nothing has been stored yet

    def __init__(
        self,
        capacity: int,
        dim: int,
        groups: int | None = None,
        labeled: bool = False,
        dtype: torch.dtype = torch.float32,
        normalize: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("capacity", capacity), ("dim", dim), ("groups", groups)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating type, got {dtype}")
        self.capacity, self.dim, self.groups = capacity, dim, groups
        self.labeled, self.normalize = labeled, normalize
        leading = () if groups is None else (groups,)
        self.register_buffer("features", torch.zeros(*leading, capacity, dim, dtype=dtype, device=device))
        classes = torch.full((*leading, capacity), -1, dtype=torch.int64, device=device) if labeled else None
        self.register_buffer("classes", classes)
        self._next = 0  # slot of the next row
        self._filled = 0

    def __len__(self) -> int:
        """Rows stored so far, per group."""
        return self._filled

    @property
    def rows(self) -> Tensor:
        """View [(G,) len, D] of the stored rows, in no particular order."""
        return self.features.narrow(-2, 0, self._filled)

    @property
    def labels(self) -> Tensor | None:
        """View [(G,) len] of their classes, in the same order; None for a bank without labels."""
        return None if self.classes is None else self.classes.narrow(-1, 0, self._filled)

    @torch.no_grad()
    def push(self, rows: Tensor, labels: Tensor | None = None) -> None:
        """Store rows, the oldest ones giving way; of more than ``capacity`` rows the last ones stay.

        Args:
            rows: [(G,) B, D], any B, any floating dtype, on the bank's device.
            labels: [(G,) B] integers, for a labelled bank and only there.

        Raises:
            ValueError: a shape, dtype or device does not fit, or labels are missing or not expected.
        """
        self._check(rows, labels)
        pushed = rows.shape[-2]
        kept = min(pushed, self.capacity)
        start = (self._next + pushed - kept) % self.capacity
        rows = rows.narrow(-2, pushed - kept, kept)
        if self.normalize:
            wide = rows if rows.dtype == torch.float64 else rows.float()
            rows = nn.functional.normalize(wide, dim=-1)
        _write(self.features, rows, start, -2)
        if self.classes is not None and labels is not None:
            _write(self.classes, labels.narrow(-1, pushed - kept, kept), start, -1)
        self._next = (start + kept) % self.capacity
        self._filled = min(self._filled + pushed, self.capacity)

    def clear(self) -> None:
        """Forget all rows."""
        self._next = self._filled = 0

    def extra_repr(self) -> str:
        groups = "" if self.groups is None else f", groups={self.groups}"
        return (
            f"{self.capacity}, {self.dim}{groups}, labeled={self.labeled}, "
            f"dtype={self.features.dtype}, normalize={self.normalize}"
        )

    def get_extra_state(self) -> dict[str, int]:
        return {"next": self._next, "filled": self._filled}

    def set_extra_state(self, state: Any) -> None:
        self._next, self._filled = int(state["next"]), int(state["filled"])

    def _check(self, rows: Tensor, labels: Tensor | None) -> None:
        leading = self.features.shape[:-2]
        if rows.dim() != len(leading) + 2 or rows.shape[:-2] != leading or rows.shape[-1] != self.dim:
            expected = ", ".join(map(str, (*leading, "B", self.dim)))
            raise ValueError(f"rows must be [{expected}], got shape {tuple(rows.shape)}")
        if not rows.is_floating_point():
            raise ValueError(f"rows must be floating, got {rows.dtype}")
        if rows.device != self.features.device:
            raise ValueError(f"rows must be on the bank's device {self.features.device}, got {rows.device}")
        if not self.labeled:
            if labels is not None:
                raise ValueError(f"labels of shape {tuple(labels.shape)} given to a bank with labeled=False")
            return
        if labels is None:
            raise ValueError(f"labels missing for {tuple(rows.shape)} rows of a bank with labeled=True")
        if labels.shape != rows.shape[:-1]:
            raise ValueError(
                f"labels must hold one class per row, got shapes {tuple(labels.shape)} and {tuple(rows.shape)}"
            )
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"labels must hold integers, got {labels.dtype}")
        if labels.device != self.features.device:
            raise ValueError(f"labels must be on the bank's device {self.features.device}, got {labels.device}")


def _write(buffer: Tensor, values: Tensor, start: int, dim: int) -> None:
    """Copy ``values`` into the ring ``buffer`` from slot ``start`` on, around the end if need be."""
    count = values.shape[dim]
    before_end = min(count, buffer.shape[dim] - start)
    buffer.narrow(dim, start, before_end).copy_(values.narrow(dim, 0, before_end))
    if count > before_end:
        buffer.narrow(dim, 0, count - before_end).copy_(values.narrow(dim, before_end, count - before_end))
