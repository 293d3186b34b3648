"""Hand the static and dynamic convolution to the compiled CPU library."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from volution.ops import _native
from volution.ops._shared.depthwise import native as depthwise
from volution.ops._shared.layout import as_map, empty_map, map_steps
from volution.ops._shared.neighbourhood import native as neighbourhood
from volution.ops._shared.neighbourhood.native import as_kernel, kernel_steps
from volution.ops.xvolution.reference import in_parts

# Bytes of the narrowest vectors; the channels of a group have to fill whole ones.
_VECTOR = 16


def static_dynamic_conv2d(
    input: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    offsets: Sequence[int],
    stride: int,
    dilation: int,
) -> Tensor:
    """Compute the operator on the CPU."""
    n, c, height, width = input.shape
    _, groups, taps, h, w = kernel.shape
    if c // groups * input.element_size() % _VECTOR:
        # Groups of channels that do not fill vectors.
        given = (input, kernel, weight, scale, bias, residual, offsets, stride, dilation)
        return in_parts(neighbourhood.gather, depthwise.depthwise_conv2d, *given)
    out = empty_map(input, (n, c, h, w))
    x, k, y = as_map(input), as_kernel(kernel), as_map(out)
    rest = None if residual is None else as_map(residual)
    side = 0 if weight is None else weight.shape[2]
    sizes = (n, c, height, width, groups, taps, h, w, stride)
    strides = map_steps(x) + map_steps(y) + kernel_steps(k)
    ending = (side, dilation, int(rest is not None), *(map_steps(rest) if rest is not None else ()))
    rows = _rows(input, weight, scale, bias)
    name = "static_dynamic_conv2d"
    _native.call(name, sizes + strides + ending, offsets, (x, k, rows, rest), y)
    return out if y is out else out.copy_(y)


def _rows(
    input: Tensor, weight: Tensor | None, scale: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Return what is fixed, channels adjacent: a row for each tap, the scale, the bias."""
    c = input.shape[1]
    taps = [] if weight is None else [weight.reshape(c, -1).t()]
    factor = input.new_ones(1, c) if scale is None else scale[None]
    shift = input.new_zeros(1, c) if bias is None else bias[None]
    return torch.cat([*taps, factor, shift])
