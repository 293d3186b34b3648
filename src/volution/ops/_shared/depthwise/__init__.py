"""Depthwise convolution, fused with what follows it."""

from volution.ops._shared.depthwise.layer import DepthwiseConv2d
from volution.ops._shared.depthwise.mixed import mixed_depthwise_conv2d
from volution.ops._shared.depthwise.op import depthwise_conv2d

__all__ = ["DepthwiseConv2d", "depthwise_conv2d", "mixed_depthwise_conv2d"]
