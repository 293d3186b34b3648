"""What makes queries, keys and values: linear maps of the channels of a pixel."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from volution.ops import _checks


def every(input: Tensor, stride: int) -> Tensor:
    """Return every ``stride``-th pixel: those that nobody asks for need no query."""
    return input if stride == 1 else input[:, :, ::stride, ::stride]


def linear(in_channels: int, out_channels: int, groups: int, **where: Any) -> nn.Conv2d:
    """Return a linear map of the channels, grouped like the convolution it is folded with."""
    _checks.check_positive("groups", groups)
    _checks.check_divides("groups", groups, "in_channels", in_channels)
    _checks.check_divides("groups", groups, "out_channels", out_channels)
    return nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False, **where)


def apply_value(value: nn.Module, input: Tensor) -> Tensor:
    """Apply the map that makes values: a scale of each channel takes no convolution."""
    if isinstance(value, nn.Conv2d) and value.groups == value.in_channels == value.out_channels:
        return input * value.weight.reshape(-1, 1, 1)
    out: Tensor = value(input)
    return out
