"""X-volution: convolution and windowed self-attention, folded into one."""

from volution.ops.xvolution.attention import PSSA
from volution.ops.xvolution.effective import EffectiveKernel
from volution.ops.xvolution.folded import FoldedXvolution2d
from volution.ops.xvolution.layer import Xvolution2d
from volution.ops.xvolution.op import pssa2d
from volution.ops.xvolution.static_dynamic import static_dynamic_conv2d

__all__ = [
    "PSSA",
    "EffectiveKernel",
    "FoldedXvolution2d",
    "Xvolution2d",
    "pssa2d",
    "static_dynamic_conv2d",
]
