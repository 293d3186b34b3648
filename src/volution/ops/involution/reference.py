"""Involution in plain PyTorch: the neighbourhood gather over a centred square window."""

from __future__ import annotations

from torch import Tensor

from volution.ops._shared.neighbourhood import reference, window_offsets


def involution2d(input: Tensor, kernel: Tensor, *, stride: int = 1, dilation: int = 1) -> Tensor:
    """Compute :func:`volution.ops.involution2d` one window tap at a time."""
    offsets = window_offsets(kernel.shape[2], dilation)
    return reference.gather(input, kernel.flatten(2, 3), offsets, stride)
