"""Recursive gated convolution: gates of doubling width, one after the other."""

from volution.ops.gnconv.global_filter import global_filter2d
from volution.ops.gnconv.layer import GlobalLocalFilter, GnConv
from volution.ops.gnconv.op import gnconv2d

__all__ = ["GlobalLocalFilter", "GnConv", "global_filter2d", "gnconv2d"]
