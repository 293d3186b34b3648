"""What can be carried over from a convolution without changing what the network computes."""

from __future__ import annotations

import torch
from timm.layers import Conv2dSame
from torch import nn

from volution.convert.replacement import Place
from volution.ops import LKA, DepthwiseConv2d

__all__ = ["carry_scaling", "plain"]


def plain(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution that computes the same with no more than its weights.

    Raises:
        ValueError: If there is none.
    """
    if type(conv) in (nn.Conv2d, DepthwiseConv2d):
        return conv
    if type(conv) is not Conv2dSame:
        raise ValueError(
            f"{type(conv).__name__} does more with its weights than a convolution, so they "
            f"cannot be carried over"
        )
    # Only with stride 1 does it come here, and then it pads as any other.
    with torch.device("meta"):
        twin = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size[0],
            padding="same",
            dilation=conv.dilation[0],
            groups=conv.groups,
            bias=conv.bias is not None,
        )
    twin.load_state_dict(conv.state_dict(), assign=True)
    return twin.train(conv.training)


@torch.no_grad()
def carry_scaling(place: Place, layer: LKA) -> bool:
    """Make an LKA compute what a convolution does that only scales each channel; say if it is."""
    conv = place.module
    known = isinstance(conv, DepthwiseConv2d) or type(conv) is nn.Conv2d
    if not known or not isinstance(conv, nn.Conv2d) or conv.weight.is_meta:
        return False
    depthwise = conv.groups == conv.in_channels == conv.out_channels and place.stride == 1
    if not depthwise or (conv.bias is not None and conv.bias.any()):
        return False
    centre = conv.weight.shape[-1] // 2
    scaling = conv.weight[:, 0, centre, centre]
    if conv.weight.count_nonzero() != scaling.count_nonzero():
        return False
    assert layer.conv1.bias is not None
    layer.conv1.weight.zero_()
    layer.conv1.bias.copy_(scaling)
    return True
