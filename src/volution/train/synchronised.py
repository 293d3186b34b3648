"""Batch norms that normalise by the batch of all devices together."""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["SyncBatchNorm", "synchronise"]


def synchronise(net: nn.Module, *, gpu: bool) -> nn.Module:
    """Return a network whose batch norms share their statistics among all processes.

    Parameters, buffers and their names stay; so a checkpoint of one form fits the other.

    Args:
        net: The network; its norms are replaced in place.
        gpu: It will run on GPUs, for which PyTorch has such a norm. It has none for CPUs.
    """
    if gpu:
        return cast(nn.Module, convert_sync_batchnorm(net))
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, SyncBatchNorm.of(child))
    return SyncBatchNorm.of(net) if isinstance(net, _BatchNorm) else net


class SyncBatchNorm(_BatchNorm):
    """What PyTorch's synchronised batch norm is on GPUs, for processes on CPUs.

    In training with several processes, mean and variance are those of all their images; a process
    may have fewer images than another. Otherwise it is a plain batch norm. An activation that
    timm's norms have inside comes after it, as theirs does. It is none of PyTorch's synchronised
    norms by type: those may not be in a network on a CPU.

    Example:
        >>> norm = SyncBatchNorm.of(nn.BatchNorm2d(3))
        >>> sorted(norm.state_dict()) == sorted(nn.BatchNorm2d(3).state_dict())
        True
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> SyncBatchNorm:
        """Return such a norm with the parameters and buffers of another one."""
        made = cls(
            norm.num_features,
            norm.eps,
            norm.momentum,
            norm.affine,
            norm.track_running_stats,
            device="meta",
        )
        made._parameters.update(norm._parameters)
        made._buffers.update(norm._buffers)
        made.train(norm.training)
        if isinstance(norm, BatchNormAct2d):
            made.drop, made.act = norm.drop, norm.act
        return made

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        alone = not (distributed.is_available() and distributed.is_initialized())
        if not self.training or alone or distributed.get_world_size() == 1:
            x = self._alone(input)
        else:
            x = self._together(input)
        for extra in ("drop", "act"):
            if hasattr(self, extra):
                x = getattr(self, extra)(x)
        return x

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected a batch of maps or rows, got {input.dim()} dimensions")

    def _alone(self, x: Tensor) -> Tensor:
        batch = self.training or self.running_mean is None
        kept = not self.training or self.track_running_stats
        return nn.functional.batch_norm(
            x,
            self.running_mean if kept else None,
            self.running_var if kept else None,
            self.weight,
            self.bias,
            batch,
            self._rate(),
            self.eps,
        )

    def _together(self, x: Tensor) -> Tensor:
        rate = self._rate()
        # Half precision has too few digits for sums over images.
        wide = x if x.dtype == torch.float64 else x.float()
        others = [i for i in range(x.dim()) if i != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        here = wide.new_full((1,), x.numel() // x.shape[1])
        sums = _Sum.apply(torch.cat([wide.sum(others), here]))
        count = sums[-1:].detach()
        mean = sums[:-1] / count
        centred = wide - mean.view(shape)
        variance = _Sum.apply((centred * centred).sum(others)) / count
        if self.training and self.track_running_stats:
            self._keep(mean.detach(), variance.detach(), count, rate)
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        out = centred * scale.view(shape)
        if self.bias is not None:
            out = out + self.bias.view(shape)
        return cast(Tensor, out.to(x.dtype))

    def _rate(self) -> float:
        """Return how much the running statistics take of this batch, which is counted."""
        tracked = self.num_batches_tracked
        if self.training and self.track_running_stats and tracked is not None:
            tracked.add_(1)
            if self.momentum is None:
                return 1.0 / float(tracked)
        return 0.0 if self.momentum is None else self.momentum

    def _keep(self, mean: Tensor, variance: Tensor, count: Tensor, rate: float) -> None:
        running: Any = (self.running_mean, self.running_var)
        unbiased = variance * (count / (count - 1))
        for kept, new in zip(running, (mean, unbiased), strict=True):
            kept.lerp_(new.to(kept.dtype), rate)


class _Sum(torch.autograd.Function):
    """The sum over all processes; its adjoint is the same sum of what comes back to them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        distributed.all_reduce(total)
        return total
