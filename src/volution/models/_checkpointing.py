"""Gradient checkpointing that leaves no trace: what is computed again is not counted again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["recompute"]


def recompute(module: nn.Module, *inputs: Any) -> Tensor:
    """Return ``module(*inputs)``, whose insides are computed again in the backward pass.

    The running statistics of batch norms then move once, not twice: a second pass normalises by
    the same batch and forgets it.

    Args:
        module: What is run, a block of a network.
        inputs: What it takes.

    Example:
        >>> norm = nn.BatchNorm2d(1)
        >>> x = torch.arange(4.0).view(1, 1, 2, 2).requires_grad_()
        >>> recompute(norm, x).sum().backward()
        >>> norm.num_batches_tracked.item(), round(norm.running_mean.item(), 4)
        (1, 0.15)
    """
    # A traced graph has one update of each norm, and what is computed again has none.
    if torch.compiler.is_compiling():
        return cast(Tensor, checkpoint(module, *inputs, use_reentrant=False))

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(module)

    return cast(Tensor, checkpoint(module, *inputs, use_reentrant=False, context_fn=contexts))


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Let norms in training normalise by the batch without taking it into their statistics."""
    norms = [
        norm
        for norm in module.modules()
        if isinstance(norm, _BatchNorm) and norm.training and norm.track_running_stats
    ]
    kept = [dict(norm._buffers) for norm in norms]
    # Copies, not nothing: both passes have to save as many tensors.
    for norm, buffers in zip(norms, kept, strict=True):
        norm._buffers.update({k: None if b is None else b.clone() for k, b in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
