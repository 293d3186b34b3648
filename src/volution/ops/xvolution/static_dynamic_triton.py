"""The static and dynamic convolution on the GPU, of the two kernels it is the sum of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from volution.ops._shared.depthwise import triton_kernels as depthwise
from volution.ops._shared.neighbourhood import triton_kernels as neighbourhood


def static_dynamic_conv2d(
    input: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    offsets: Sequence[int],
    stride: int,
    dilation: int,
) -> Tensor:
    """Gather, convolve, add."""
    out = neighbourhood.gather(input, kernel, offsets, stride)
    if scale is not None:
        out.mul_(scale[:, None, None])
    if weight is not None:
        own = None if bias is None else bias[None]
        out.add_(depthwise.depthwise_conv2d(input, weight, own, None, stride, dilation, 1.0, False))
    elif bias is not None:
        out.add_(bias[:, None, None])
    return out if residual is None else out.add_(residual)
