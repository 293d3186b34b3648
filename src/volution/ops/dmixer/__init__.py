"""The dual dynamic mixer: convolution with a kernel made for each image, beside attention."""

from volution.ops.dmixer.osra import OSRA
from volution.ops.dmixer.position import PositionTable

__all__ = ["OSRA", "PositionTable"]
