"""The mixed depthwise convolution and its adjoints on the GPU: a launch for each slice."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from volution.ops._shared.depthwise import triton_kernels
from volution.ops._shared.depthwise.mixed_slices import conv_by, input_by, weight_by


def mixed_depthwise_conv2d(*args: Any) -> Tensor:
    """Filter every slice, written where it belongs."""
    return conv_by(triton_kernels.depthwise_conv2d, *args)


def mixed_depthwise_conv2d_input(*args: Any) -> Tensor:
    """Transpose every slice's convolution, written where it belongs."""
    return input_by(triton_kernels.depthwise_conv2d_input, *args)


def mixed_depthwise_conv2d_weight(*args: Any) -> Tensor:
    """Sum the gradient of every slice's kernels."""
    return weight_by(triton_kernels.depthwise_conv2d_weight, *args)
