"""Layers that look at a whole batch, where a process has a share of it: batch norm and dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from action.errors import InputError
from action.ranks import Ranks, gathered

_BATCH_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d)
_DROPOUTS: dict[type[nn.Module], Callable[[Tensor, float], Tensor]] = {
    nn.Dropout: F.dropout,
    nn.Dropout1d: F.dropout1d,
    nn.Dropout2d: F.dropout2d,
}
_OTHERS: tuple[type[nn.Module], ...] = (
    *_BATCH_NORMS,
    *_DROPOUTS,
    nn.SyncBatchNorm,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


def spread(module: nn.Module, ranks: Ranks) -> None:
    """Let batch norm and dropout inside a module treat the shares of all processes as the one batch that they are.

    ``torch.nn.SyncBatchNorm`` does not run on a CPU, and no dropout of PyTorch's draws for a whole batch. A layer is
    given another class in place: its parameters, buffers and hooks stay as they are.

    Raises:
        InputError: a layer of a kind that looks at a whole batch, too, but is none of these.
    """
    if ranks.world == 1:
        return
    for name, layer in module.named_modules():
        if type(layer) in _BATCH_NORMS:
            layer.__class__ = _SharedBatchNorm
        elif type(layer) in _DROPOUTS:
            layer.drop, layer.ranks = _DROPOUTS[type(layer)], ranks
            layer.__class__ = _SharedDropout
        elif isinstance(layer, _OTHERS) and not isinstance(layer, _SharedBatchNorm):
            known = ", ".join(kind.__name__ for kind in (*_BATCH_NORMS, *_DROPOUTS))
            raise InputError(
                f"model.network: the layer '{name}' is of the kind {type(layer).__name__}, which several processes "
                f"cannot train as one: take one of {known} in its place, or train on one process"
            )


class _SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm [B, C, ...] by the statistics of all shares."""

    def forward(self, x: Tensor) -> Tensor:
        tracked = self.running_mean is not None and self.running_var is not None
        if not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, not tracked, 0.0, self.eps
            )
        normalize: Callable[..., tuple[Tensor, ...]] = _Normalize.apply
        y, mean, variance, count = normalize(x, self.weight, self.bias, self.eps)
        if tracked:
            self._track(mean, variance * (count / (count - 1)))
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        weight = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(variance.to(self.running_var.dtype), weight)


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, by mean and variance of the rows of all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shape, dims = _broadcast(x), _but_channels(x)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        count = x.numel() // x.shape[1]
        mean = exact.sum(dims) / max(count, 1)
        squares = (exact - mean.view(shape)).square().sum(dims)
        ours = torch.cat([mean.new_tensor([count]), mean, squares]).double()
        # Moments about each share's own mean: sums of squares alone would cancel.
        counts, means, squares = torch.stack(gathered(ours)).split([1, len(mean), len(mean)], dim=1)
        total = counts.sum()
        if total == 1:
            raise ValueError(f"batch norm needs more than one value of a channel, got {tuple(x.shape)} in all")
        mean = (counts * means).sum(0) / total
        variance = (squares + counts * (means - mean).square()).sum(0) / total
        factor = (variance + eps).rsqrt().to(exact.dtype)
        ctx.total = total
        ctx.save_for_backward(x, weight, mean.to(exact.dtype), factor)
        y = (exact - mean.to(exact.dtype).view(shape)) * (factor if weight is None else factor * weight).view(shape)
        if bias is not None:
            y = y + bias.view(shape)
        ctx.mark_non_differentiable(mean, variance, total)
        return y.to(x.dtype), mean, variance, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, factor = ctx.saved_tensors
        shape, dims = _broadcast(x), _but_channels(x)
        exact = grad.to(factor.dtype)
        unit = (x.to(factor.dtype) - mean.view(shape)) * factor.view(shape)
        to_bias, to_weight = exact.sum(dims), (exact * unit).sum(dims)
        sums = torch.stack(gathered(torch.cat([to_bias, to_weight]).double())).sum(0) / ctx.total
        bias_mean, weight_mean = (part.to(factor.dtype).view(shape) for part in sums.chunk(2))
        to_x = (exact - bias_mean - unit * weight_mean) * (factor if weight is None else weight * factor).view(shape)
        if weight is None:
            return to_x.to(x.dtype), None, None, None
        return to_x.to(x.dtype), to_weight.to(weight.dtype), to_bias.to(weight.dtype), None


class _SharedDropout(nn.Module):
    """Dropout that draws for the whole batch, as one process would, and takes this process's share."""

    p: float
    drop: Callable[[Tensor, float], Tensor]  # one of PyTorch's
    ranks: Ranks

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        whole = x.new_ones((self.ranks.batch, *x.shape[1:]))
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):  # numbers are drawn in this order
            whole = whole.contiguous(memory_format=torch.channels_last)
        return x * self.ranks.own(self.drop(whole, self.p))


def _but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _broadcast(x: Tensor) -> tuple[int, ...]:
    return (1, -1, *(1 for _ in x.shape[2:]))
