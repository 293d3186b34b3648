"""X-volution: convolution and windowed self-attention, folded into one."""

from volution.ops.xvolution.op import pssa2d

__all__ = ["pssa2d"]
