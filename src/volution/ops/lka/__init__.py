"""Large-kernel attention: a gate from a large convolution, taken apart into small ones."""

from volution.ops.lka.layer import LKA, LKAttention
from volution.ops.lka.op import lka2d

__all__ = ["LKA", "LKAttention", "lka2d"]
