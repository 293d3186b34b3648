"""Large-kernel attention in plain PyTorch: the specification."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def lka2d(
    input: Tensor,
    local_weight: Tensor,
    local_bias: Tensor | None,
    dilated_weight: Tensor,
    dilated_bias: Tensor | None,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    *,
    dilation: int = 3,
) -> Tensor:
    """Compute :func:`volution.ops.lka2d` one layer at a time."""
    channels, near = input.shape[1], local_weight.shape[2] // 2
    far = dilation * (dilated_weight.shape[2] // 2)
    x = F.conv2d(input, local_weight, local_bias, padding=near, groups=channels)
    x = F.conv2d(x, dilated_weight, dilated_bias, padding=far, dilation=dilation, groups=channels)
    return F.conv2d(x, pointwise_weight, pointwise_bias) * input


def equivalent_kernel(
    local_weight: Tensor,
    local_bias: Tensor | None,
    dilated_weight: Tensor,
    dilated_bias: Tensor | None,
    dilation: int,
) -> tuple[Tensor, Tensor]:
    """Compose the two depthwise convolutions: a tap of one meets each tap of the other."""
    # Every tap of the dilated kernel puts a scaled copy of the local one in its place.
    kernel = F.conv_transpose2d(
        dilated_weight.transpose(0, 1), local_weight, stride=dilation, groups=local_weight.shape[0]
    ).transpose(0, 1)
    bias = local_weight.new_zeros(local_weight.shape[0])
    if local_bias is not None:
        bias = bias + local_bias * dilated_weight.sum((1, 2, 3))
    if dilated_bias is not None:
        bias = bias + dilated_bias
    return kernel, bias
