"""Spatial operators: each as a function, a module, a reference and its kernels."""

from volution.ops._library import reference_ops
from volution.ops._report import report
from volution.ops._shared.depthwise import (
    DepthwiseConv2d,
    depthwise_conv2d,
    mixed_depthwise_conv2d,
)
from volution.ops._shared.neighbourhood import correlate, gather, scatter, window_offsets
from volution.ops.dmixer import (
    MSFFN,
    OSRA,
    STE,
    DMixer,
    IDConv,
    PositionTable,
    dynamic_depthwise_conv2d,
)
from volution.ops.gnconv import GlobalLocalFilter, GnConv, global_filter2d, gnconv2d
from volution.ops.involution import Involution2d, involution2d
from volution.ops.lka import LKA, LKAttention, lka2d
from volution.ops.xvolution import (
    PSSA,
    FoldedXvolution2d,
    Xvolution2d,
    pssa2d,
    static_dynamic_conv2d,
)

__all__ = [
    "LKA",
    "MSFFN",
    "OSRA",
    "PSSA",
    "STE",
    "DMixer",
    "DepthwiseConv2d",
    "FoldedXvolution2d",
    "GlobalLocalFilter",
    "GnConv",
    "IDConv",
    "Involution2d",
    "LKAttention",
    "PositionTable",
    "Xvolution2d",
    "correlate",
    "depthwise_conv2d",
    "dynamic_depthwise_conv2d",
    "gather",
    "global_filter2d",
    "gnconv2d",
    "involution2d",
    "lka2d",
    "mixed_depthwise_conv2d",
    "pssa2d",
    "reference_ops",
    "report",
    "scatter",
    "static_dynamic_conv2d",
    "window_offsets",
]
