"""The mixed depthwise convolution and its adjoints, slice by slice, on the plain ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from volution.ops._shared.depthwise import native, reference
from volution.ops._shared.layout import empty_map, format_of


def slices(
    weight: Tensor | None, channels: Sequence[int], sides: Sequence[int]
) -> Iterator[tuple[int, int, int, Any]]:
    """Yield the first channel, channels, side and kernels ``(1, C_i, K_i, K_i)`` of each slice."""
    first = tap = 0
    for count, side in zip(channels, sides, strict=True):
        taps = count * side * side
        if count:
            kernel = None
            if weight is not None:
                kernel = weight.narrow(0, tap, taps).view(1, count, side, side)
            yield first, count, side, kernel
        first, tap = first + count, tap + taps


def conv_by(
    conv: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    channels: Sequence[int],
    sides: Sequence[int],
    gelu: bool,
    shortcut: bool,
) -> Tensor:
    """Run a convolution that writes into ``out`` on every slice."""
    out = empty_map(input, tuple(input.shape))
    for first, count, _, kernel in slices(weight, channels, sides):
        part, result = (x.narrow(1, first, count) for x in (input, out))
        own = None if bias is None else bias.narrow(0, first, count)[None]
        conv(part, kernel, own, None, 1, 1, 1.0, gelu, shortcut, out=result)
    return out


def input_by(
    transposed: Callable[..., Tensor],
    grad: Tensor,
    weight: Tensor,
    channels: Sequence[int],
    sides: Sequence[int],
    shortcut: bool,
) -> Tensor:
    """Run a transposed convolution that writes into ``out`` on every slice."""
    out = empty_map(grad, tuple(grad.shape))
    for first, count, _, kernel in slices(weight, channels, sides):
        part, result = (x.narrow(1, first, count) for x in (grad, out))
        transposed(part, kernel, grad.shape[2:], 1, 1, shortcut, out=result)
    return out


def weight_by(
    compare: Callable[..., Tensor],
    grad: Tensor,
    input: Tensor,
    channels: Sequence[int],
    sides: Sequence[int],
) -> Tensor:
    """Run the gradient of the kernels on every slice."""
    parts = [grad.new_empty(0)]
    for first, count, side, _ in slices(None, channels, sides):
        pair = (x.narrow(1, first, count) for x in (grad, input))
        parts.append(compare(*pair, 1, side, 1, 1).flatten())
    return torch.cat(parts)


def reference_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    channels: Sequence[int],
    sides: Sequence[int],
    gelu: bool,
    shortcut: bool,
) -> Tensor:
    """Cut, filter each slice, join."""
    parts = [
        reference.depthwise_conv2d(
            input.narrow(1, first, count),
            kernel,
            None if bias is None else bias.narrow(0, first, count)[None],
            None,
            *(1, 1, 1.0, gelu, shortcut),
        )
        for first, count, _, kernel in slices(weight, channels, sides)
    ]
    return torch.cat(parts, 1).contiguous(memory_format=format_of(input))


def reference_input(
    grad: Tensor, weight: Tensor, channels: Sequence[int], sides: Sequence[int], shortcut: bool
) -> Tensor:
    """Cut, transpose the convolution of each slice, join."""
    size = grad.shape[2:]
    parts = [
        reference.depthwise_conv2d_input(grad.narrow(1, first, count), kernel, size, 1, 1, shortcut)
        for first, count, _, kernel in slices(weight, channels, sides)
    ]
    return torch.cat(parts, 1).contiguous(memory_format=format_of(grad))


def reference_weight(
    grad: Tensor, input: Tensor, channels: Sequence[int], sides: Sequence[int]
) -> Tensor:
    """Compare slice by slice."""
    return weight_by(reference.depthwise_conv2d_weight, grad, input, channels, sides)


def native_conv(*args: Any) -> Tensor:
    """Filter every slice, written where it belongs."""
    return conv_by(native.depthwise_conv2d, *args)


def native_input(*args: Any) -> Tensor:
    """Transpose every slice's convolution, written where it belongs."""
    return input_by(native.depthwise_conv2d_input, *args)


def native_weight(*args: Any) -> Tensor:
    """Sum the gradient of every slice's kernels."""
    return weight_by(native.depthwise_conv2d_weight, *args)
