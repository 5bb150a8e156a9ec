"""One update of the networks: precision, gradients, optimiser."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from action.config import RunConfig
from action.errors import InputError
from action.ranks import ALONE, Ranks

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
SMALLEST_SCALE = 2.0**-14
"""Of the loss: where gradients overflow float16 even then, a step is not going to succeed."""


class Update:
    """SGD in the precision of a run.

    Args:
        config: settings of the run.
        parameters: that are trained, on one device.
        device: theirs.
        ranks: the processes that train.
    """

    def __init__(
        self, config: RunConfig, parameters: Iterable[nn.Parameter], device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        settings = config.optimizer
        self._ranks = ranks
        self._parameters, self._device, self._settings = list(parameters), device, settings
        self._accumulate = config.accumulate
        self._half = HALF.get(config.precision)
        self.optimizer = torch.optim.SGD(
            self._parameters,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._begin_momentum()
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")

    def _begin_momentum(self) -> None:
        """Zeros for parameters that have not moved, as later stages' heads: fused SGD takes all buffers or none."""
        for parameter in self._parameters:
            self.optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))

    def autocast(self) -> torch.autocast:
        """The context in which losses are computed."""
        return torch.autocast(self._device.type, dtype=self._half, enabled=self._half is not None)

    def learning_rate(self, step: int, steps: int) -> float:
        """That of update ``step`` of ``steps``, lr * (1 - t/T) ** power."""
        return float(self._settings.lr * (1 - step / steps) ** self._settings.power)

    def __call__(self, losses: Iterable[Tensor], lr: float, *, nesterov: bool) -> Tensor:
        """Move the parameters along the gradient of the losses' mean; returns the gradient's norm.

        With fp16 a gradient that overflows changes nothing, and the next loss is scaled less.

        Args:
            losses: as many as ``accumulate`` says, of a batch each. What the backward pass of one needs is free before
                the next one is asked for.
            lr: learning rate.
            nesterov: whether the momentum is Nesterov's.
        """
        for group in self.optimizer.param_groups:
            group["lr"], group["nesterov"] = lr, nesterov
        self.optimizer.zero_grad(set_to_none=True)
        for loss in losses:
            self.scaler.scale(loss / self._accumulate).backward()
        self._ranks.sum_gradients(self._parameters)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def is_sound(self, loss: float, norm: float) -> bool:
        """Whether numbers of a step are such as may be; fp16 steps over gradients that overflow."""
        return isfinite(loss) and (self.scaler.is_enabled() or isfinite(norm))

    def check_scale(self) -> None:
        """Stop a run in fp16 whose steps all overflow.

        Raises:
            InputError: the loss is scaled by next to nothing.
        """
        if self.scaler.is_enabled() and (scale := self.scaler.get_scale()) < SMALLEST_SCALE:
            raise InputError(
                f"precision fp16: gradients overflow although the loss is scaled by {scale:g}: use bf16 or fp32, or "
                "lower optimizer.lr"
            )

    def state_dict(self) -> dict[str, Any]:
        """State of optimiser and loss scaling."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave; a run from before there was a scaling has none."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._begin_momentum()
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
