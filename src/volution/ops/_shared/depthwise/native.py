"""Hand the three operators to the compiled CPU library."""

from volution.ops._shared.depthwise.reference import (
    depthwise_conv2d,
    depthwise_conv2d_input,
    depthwise_conv2d_weight,
)

__all__ = ["depthwise_conv2d", "depthwise_conv2d_input", "depthwise_conv2d_weight"]
