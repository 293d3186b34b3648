"""Hand the three operators to the compiled CPU library.

The C side wants channels-last maps (channel stride 1); every other stride is free, so slices and
expanded tensors pass without a copy, and weights may have any strides. Any other layout is
converted once, here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from volution.ops import _native
from volution.ops._shared.layout import as_map, empty_map, map_steps, strided

# Channels of the narrowest vectors; maps of fewer are padded to it.
_LEAST_CHANNELS = {torch.float32: 4, torch.bfloat16: 8, torch.float64: 2}


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    stride: int,
    dilation: int,
    scale: float,
    gelu: bool,
    shortcut: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Compute :func:`reference.depthwise_conv2d` on the CPU, into ``out`` where it is given."""
    n, c, height, width = input.shape
    missing = _missing_channels(input)
    if missing:
        more = None if bias is None else _widened(bias[:, :, None, None], missing)[:, :, 0, 0]
        pair = _widened(input, missing), _widened(weight, missing)
        wide = depthwise_conv2d(*pair, more, gate, stride, dilation, scale, gelu, shortcut)
        return _narrowed(wide, input, c, out)
    h, w = strided(height, stride), strided(width, stride)
    if out is None:
        out = empty_map(input, (n, c, h, w))
    x, y = as_map(input), as_map(out)
    g = None if gate is None else as_map(gate)
    b = None if bias is None else bias.contiguous()
    sizes = (n, c, height, width, h, w, weight.shape[2], stride, dilation, weight.shape[0])
    ending = (0 if g is None else g.shape[1], int(gelu), _bits(scale), int(shortcut))
    strides = (
        *map_steps(x),
        *map_steps(y),
        *((0, 0, 0) if g is None else map_steps(g)),
        *weight.stride(),
    )
    image = 0 if b is None or b.shape[0] == 1 else c
    _native.call("depthwise_conv2d", (*sizes, *ending, *strides, image), (), (x, weight, b, g), y)
    return out if y is out else out.copy_(y)


def depthwise_conv2d_input(
    grad: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: int,
    dilation: int,
    shortcut: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Compute :func:`reference.depthwise_conv2d_input` on the CPU, into ``out`` if it is given."""
    n, c, h, w = grad.shape
    missing = _missing_channels(grad)
    if missing:
        pair = _widened(grad, missing), _widened(weight, missing)
        wide = depthwise_conv2d_input(*pair, size, stride, dilation, shortcut)
        return _narrowed(wide, grad, c, out)
    if out is None:
        out = empty_map(grad, (n, c, *size))
    y, x = as_map(grad), as_map(out)
    sizes = (n, c, *size, h, w, weight.shape[2], stride, dilation, weight.shape[0])
    strides = (*map_steps(x), *map_steps(y), 0, 0, 0, *weight.stride(), 0)
    ending = (*_NO_ENDING[:-1], int(shortcut))
    _native.call("depthwise_conv2d_input", (*sizes, *ending, *strides), (), (y, weight), x)
    return out if x is out else out.copy_(x)


def depthwise_conv2d_weight(
    grad: Tensor, input: Tensor, batch: int, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    """Compute :func:`reference.depthwise_conv2d_weight` on the CPU."""
    n, c, height, width = input.shape
    if n == 0:
        return grad.new_zeros((batch, c, kernel_size, kernel_size))
    missing = _missing_channels(input)
    if missing:
        pair = _widened(grad, missing), _widened(input, missing)
        wide = depthwise_conv2d_weight(*pair, batch, kernel_size, stride, dilation)
        return wide[:, :c].contiguous()
    y, x = as_map(grad), as_map(input)
    kernels = grad.new_empty((batch, kernel_size, kernel_size, c))
    sizes = (n, c, height, width, *grad.shape[2:], kernel_size, stride, dilation, batch)
    strides = (*map_steps(x), *map_steps(y), *_NO_STRIDES)
    _native.call("depthwise_conv2d_weight", (*sizes, *_NO_ENDING, *strides), (), (y, x), kernels)
    return kernels.permute(0, 3, 1, 2).contiguous()


def _bits(value: float) -> int:
    bits: int = struct.unpack("q", struct.pack("d", value))[0]
    return bits


# No gate, no GELU, scale 1, no shortcut; and no strides of gate, weight and bias.
_NO_ENDING = (0, 0, _bits(1.0), 0)
_NO_STRIDES = (0,) * 8


def _missing_channels(map: Tensor) -> int:
    return max(0, _LEAST_CHANNELS[map.dtype] - map.shape[1])


def _widened(tensor: Tensor, missing: int) -> Tensor:
    return F.pad(tensor, [0, 0, 0, 0, 0, missing])


def _narrowed(wide: Tensor, like: Tensor, channels: int, out: Tensor | None) -> Tensor:
    if out is None:
        out = empty_map(like, (wide.shape[0], channels, *wide.shape[2:]))
    return out.copy_(wide[:, :channels])
