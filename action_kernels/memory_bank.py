"""A first-in-first-out memory of feature rows, optionally with their classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .dtypes import INTEGER, working_dtype
from .operators.arguments import check_tensor
from .unit_rows import unit

# The fill level is the size of a tensor without elements, since torch.compile takes a module's integers to be constants
# and sizes for variables. Sizes 0 and 1 are constants too, and equal sizes one variable: this much more is neither.
_SIZE_OF_NONE = 1 << 20


class MemoryBank(nn.Module):
    """Ring buffer of the last ``capacity`` rows pushed.

    The buffer follows the module's device; its fill level is kept on the host, so neither pushing nor reading waits for
    a GPU, and both work inside a compiled function. Rows are stored detached, as the paper's setting has it, and never
    share memory with what was pushed, the bank's own rows included. :attr:`rows` and :attr:`labels` are views: a push
    overwrites them in place, so push after the backward pass of a loss that keeps the bank (``action_contrast``,
    ``anatomical_contrast``); autograd refuses otherwise.

    ``state_dict`` holds tensors alone: ``features``, ``classes`` of a labelled bank, and ``level``. They are loaded
    together or not at all, into memory of the bank's own and in its dtype: a state that does not fit raises, and one
    that lacks a part (``strict=False``) leaves the bank as it was, with a warning. The tensors are no buffers of the
    module: in ``DistributedDataParallel`` every process has its own rows, which the first one's never replace.
    As for any container, an empty bank is false.

    Args:
        capacity: rows kept, per group.
        dim: features per row, D.
        groups: one bank per group, filled in lockstep: rows are [G, B, D]. None: a single bank, rows [B, D].
        labeled: keep an integer class with every row.
        dtype: storage dtype; half precision halves the memory, and the operators read it as it is.
        normalize: scale rows to unit length when they are stored (before rounding to ``dtype``).
        device: where the buffer lies at first.

    Raises:
        ValueError: capacity, dim or groups is no whole number >= 1, or ``dtype`` is not a floating one.
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
            if value is not None and not (hasattr(value, "__index__") and value >= 1):
                raise ValueError(f"{name} must be a whole number and at least 1, got {value!r}")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating type, got {dtype}")
        self.capacity, self.dim, self.groups = int(capacity), int(dim), groups
        self.labeled, self.normalize = labeled, normalize
        leading = () if groups is None else (groups,)
        self.features = torch.zeros(*leading, capacity, dim, dtype=dtype, device=device)
        self.classes = torch.full((*leading, capacity), -1, dtype=torch.int64, device=device) if labeled else None
        self._count = 0

    @property
    def _count(self) -> int:
        """Rows pushed so far, minus all turns of the ring but the first: from 0 to 2 * capacity - 1."""
        return self._marker.shape[0] - _SIZE_OF_NONE

    @_count.setter
    def _count(self, count: int) -> None:
        turns = max(count // self.capacity - 1, 0)  # without a branch that a compiled function would guard
        size = _SIZE_OF_NONE + count - turns * self.capacity
        self._marker = torch.empty((size, 0), dtype=torch.uint8, device="cpu")

    @property
    def _filled(self) -> int:
        return min(self._count, self.capacity)

    def __len__(self) -> int:
        """Rows stored so far, per group."""
        return self._filled

    @property
    def level(self) -> Tensor:
        """Slot of the next row and rows stored, [2] int64 on the CPU: a copy, for ``state_dict``."""
        return torch.tensor([self._count % self.capacity, self._filled], dtype=torch.int64, device="cpu")

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
            rows: [(G,) B, D], any B, any floating dtype, on the bank's device; may be rows of the bank itself.
            labels: [(G,) B] integers, for a labelled bank and only there.

        Raises:
            ValueError: a shape, dtype or device does not fit, or labels are missing or not expected.
        """
        self.check(rows, labels)
        pushed = rows.shape[-2]
        kept = min(pushed, self.capacity)
        first = self._count + pushed - kept
        slots = (torch.arange(kept, dtype=torch.int64, device=self.features.device) + first) % self.capacity
        rows = rows.narrow(-2, pushed - kept, kept)
        if self.normalize:
            rows = unit(rows, True, working_dtype(rows))
        # Copies, since rows and labels may be views of what is written.
        self.features.index_copy_(-2, slots, rows.to(self.features.dtype, copy=True))
        if self.classes is not None and labels is not None:
            labels = labels.narrow(-1, pushed - kept, kept)
            self.classes.index_copy_(-1, slots, labels.to(torch.int64, copy=True))
        self._count = self._count + pushed

    def clear(self) -> None:
        """Forget all rows."""
        self._count = 0

    def extra_repr(self) -> str:
        groups = "" if self.groups is None else f", groups={self.groups}"
        return (
            f"{self.capacity}, {self.dim}{groups}, labeled={self.labeled}, "
            f"dtype={self.features.dtype}, normalize={self.normalize}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MemoryBank:
        """Move or convert the rows with the module; rows that come from ``meta`` have no values and are forgotten."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        unreal = self.features.is_meta
        self.features = fn(self.features)
        self.classes = None if self.classes is None else fn(self.classes)
        if unreal and not self.features.is_meta:
            self.clear()
            self.features.zero_()
            if self.classes is not None:
                self.classes.fill_(-1)
        return self

    # ------------------------------------------------------------------------------------------------------- state

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in (("features", self.features), ("classes", self.classes), ("level", self.level)):
            if tensor is not None:
                destination[prefix + name] = tensor if keep_vars else tensor.detach()

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
        state = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        if "level" not in state and "_extra_state" in state:  # as banks were saved before their state was all tensors
            state["level"] = _level_of(state["_extra_state"])
        state.pop("_extra_state", None)
        names = ["features", "classes", "level"] if self.labeled else ["features", "level"]
        missing = [name for name in names if name not in state]
        unexpected_keys.extend(prefix + name for name in state if name not in names)
        missing_keys.extend(prefix + name for name in missing)
        if missing:
            if len(missing) < len(names):
                warnings.warn(
                    f"the memory bank {prefix.removesuffix('.') or 'itself'} is left as it was: "
                    f"the state lacks its {' and '.join(missing)}",
                    stacklevel=2,
                )
            return
        wrong = self._misfits(state)
        if wrong:
            error_msgs.extend(f"{prefix}{sentence}" for sentence in wrong)
            return
        following, filled = state["level"].tolist()
        if local_metadata.get("assign_to_params_buffers", False):
            self.features = state["features"].detach().to(self.features.dtype, copy=True)
            self.classes = state["classes"].to(torch.int64, copy=True) if self.labeled else None
        else:
            with torch.no_grad():
                self.features.copy_(state["features"])
                if self.classes is not None:
                    self.classes.copy_(state["classes"])
        self._count = filled if filled < self.capacity else self.capacity + following

    def _misfits(self, state: dict[str, Any]) -> list[str]:
        """What is wrong with a whole state, one sentence each."""
        wrong = []
        for name, expected in (("features", self.features), ("classes", self.classes)):
            if expected is None:
                continue
            value = state[name]
            if not isinstance(value, Tensor) or value.shape != expected.shape:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                wrong.append(f"{name}: the bank holds {tuple(expected.shape)}, the state {shape}")
            elif not (value.is_floating_point() if expected.is_floating_point() else value.dtype in INTEGER):
                wrong.append(f"{name}: the bank holds {expected.dtype}, the state {value.dtype}")
        level = state["level"]
        if not isinstance(level, Tensor) or level.is_meta or level.dtype not in INTEGER or level.shape != (2,):
            return [*wrong, f"level: must be two integers, the next slot and the rows stored, got {level!r}"]
        following, filled = level.tolist()
        full = filled == self.capacity and 0 <= following < self.capacity
        if not full and not 0 <= following == filled < self.capacity:
            wrong.append(
                f"level: next slot {following} with {filled} rows stored is no state of a bank with room for "
                f"{self.capacity}"
            )
        return wrong

    def check(self, rows: Tensor, labels: Tensor | None = None) -> None:
        """Whether :meth:`push` would take them.

        Raises:
            ValueError: a shape, dtype or device does not fit, or labels are missing or not expected.
        """
        for name, value in (("rows", rows), ("labels", labels)):
            if value is not None:
                check_tensor(name, value)
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


def _level_of(extra_state: Any) -> Any:
    """``level`` from the dictionary that banks once kept beside their tensors; anything else as it is."""
    try:
        values = [int(extra_state["next"]), int(extra_state["filled"])]
    except (KeyError, IndexError, TypeError, ValueError):
        return extra_state
    return torch.tensor(values, dtype=torch.int64, device="cpu")
