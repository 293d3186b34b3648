"""The dual dynamic mixer: convolution with a kernel made for each image, beside attention."""

from volution.ops.dmixer.idconv import IDConv
from volution.ops.dmixer.layer import STE, DMixer
from volution.ops.dmixer.msffn import MSFFN
from volution.ops.dmixer.op import dynamic_depthwise_conv2d
from volution.ops.dmixer.osra import OSRA
from volution.ops.dmixer.position import PositionTable

__all__ = [
    "MSFFN",
    "OSRA",
    "STE",
    "DMixer",
    "IDConv",
    "PositionTable",
    "dynamic_depthwise_conv2d",
]
