"""Dynamic depthwise convolution in plain PyTorch: the specification, and what is exported.

Sizes may be symbols: nothing here asks for the number of images or pixels.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from volution.ops._shared.layout import accumulation_dtype, format_of, strided


def dynamic_depthwise_conv2d(
    input: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
) -> Tensor:
    """Add up shifted copies of the map, each times its tap: :func:`dynamic_depthwise_conv2d`."""
    wide = accumulation_dtype(input.dtype)
    side = kernel.shape[2]
    margin = dilation * (side // 2)
    padded = F.pad(input.to(wide), [margin] * 4)
    taps = kernel.to(wide)[..., None, None]
    h, w = (strided(size, stride) for size in input.shape[2:])
    out = None
    for u, v in itertools.product(range(side), repeat=2):
        shifted = padded
        for axis, (start, size) in enumerate(((u * dilation, h), (v * dilation, w)), start=2):
            shifted = shifted.narrow(axis, start, stride * (size - 1) + 1)
            if stride > 1:
                shifted = shifted[(slice(None),) * axis + (slice(None, None, stride),)]
        term = taps[:, :, u, v] * shifted
        out = term if out is None else out + term
    assert out is not None
    if bias is not None:
        out = out + bias.to(wide)[:, :, None, None]
    return out.to(input.dtype).contiguous(memory_format=format_of(input))


def bins(size: int, side: int, like: Tensor, mean: bool = False) -> Tensor:
    """Return the matrix ``(side, size)`` that averages a line of pixels over ``side`` bins.

    The bins are those of :func:`torch.nn.functional.adaptive_avg_pool2d`, which overlap where
    ``side`` does not divide ``size``: from ``floor(i * size / side)`` to
    ``ceil((i + 1) * size / side)``.

    Args:
        size: Pixels of the line.
        side: How many bins.
        like: Has the dtype and device of the result.
        mean: Add a last row, the mean over the whole line.

    Example:
        >>> bins(3, 2, torch.ones(()))
        tensor([[0.5000, 0.5000, 0.0000],
                [0.0000, 0.5000, 0.5000]])
    """
    bin = torch.arange(side, device=like.device)[:, None]
    pixel = torch.arange(size, device=like.device)
    first, end = bin * size // side, ((bin + 1) * size + side - 1) // side
    inside = (pixel >= first) & (pixel < end)
    if mean:
        inside = torch.cat([inside, torch.ones_like(inside[:1])])
    members = inside.to(accumulation_dtype(like.dtype))
    return (members / members.sum(1, keepdim=True)).to(like.dtype)
