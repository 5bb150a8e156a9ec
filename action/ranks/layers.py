"""Layers that look at a whole batch, where a process has a share of it: batch norm and dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from action.ranks import Ranks, gathered


def spread(module: nn.Module, ranks: Ranks) -> None:
    """Let batch norm and dropout inside a module treat the shares of all processes as the one batch that they are.

    ``torch.nn.SyncBatchNorm`` does not run on a CPU, and no dropout of PyTorch's draws for a whole batch.
    """
    if ranks.world == 1:
        return
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, _SharedBatchNorm(child))
            elif isinstance(child, nn.Dropout):
                setattr(parent, name, _SharedDropout(child.p, ranks))


class _SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm [B, C, ...] by the statistics of all shares, with the parameters and buffers of another one."""

    def __init__(self, like: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__(like.num_features, like.eps, like.momentum, device="meta")
        self.weight, self.bias = like.weight, like.bias
        self.running_mean, self.running_var = like.running_mean, like.running_var
        self.num_batches_tracked = like.num_batches_tracked
        self.train(like.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        normalize: Callable[..., tuple[Tensor, ...]] = _Normalize.apply
        y, mean, variance, count = normalize(x, self.weight, self.bias, self.eps)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var.dtype), self.momentum)
        return y


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, by mean and variance of the rows of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
        y = (exact - mean.to(exact.dtype).view(shape)) * (factor * weight).view(shape) + bias.view(shape)
        ctx.mark_non_differentiable(mean, variance, total)
        return y.to(x.dtype), mean, variance, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, factor = ctx.saved_tensors
        shape, dims = _broadcast(x), _but_channels(x)
        exact = grad.to(factor.dtype)
        unit = (x.to(factor.dtype) - mean.view(shape)) * factor.view(shape)
        to_bias, to_weight = exact.sum(dims), (exact * unit).sum(dims)
        sums = torch.stack(gathered(torch.cat([to_bias, to_weight]).double())).sum(0) / ctx.total
        bias_mean, weight_mean = (part.to(factor.dtype).view(shape) for part in sums.chunk(2))
        to_x = (exact - bias_mean - unit * weight_mean) * (weight * factor).view(shape)
        return to_x.to(x.dtype), to_weight.to(weight.dtype), to_bias.to(weight.dtype), None


class _SharedDropout(nn.Module):
    """Dropout that draws for the whole batch, as one process would, and takes this process's share."""

    def __init__(self, p: float, ranks: Ranks) -> None:
        super().__init__()
        self.p, self._ranks = p, ranks

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        whole = x.new_ones((self._ranks.batch, *x.shape[1:]))
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):  # numbers are drawn in this order
            whole = whole.contiguous(memory_format=torch.channels_last)
        return x * self._ranks.own(F.dropout(whole, self.p))


def _but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _broadcast(x: Tensor) -> tuple[int, ...]:
    return (1, -1, *(1 for _ in x.shape[2:]))
