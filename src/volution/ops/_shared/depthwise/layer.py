"""A depthwise convolution as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from volution.ops import _checks
from volution.ops._shared.depthwise.op import depthwise_conv2d

# One call in traced graphs, so that symbolic tracing does not stop at the argument checks.
torch.fx.wrap("depthwise_conv2d")


class DepthwiseConv2d(nn.Conv2d):
    """Filter every channel with a kernel of its own; output as large as the input over the stride.

    An ``nn.Conv2d`` with ``groups=channels`` and centred zero padding, parameters under the same
    names, that runs on :func:`volution.ops.depthwise_conv2d`.

    Args:
        channels: Channels ``C`` of input and output.
        kernel_size: Side ``K`` of the kernels, odd.
        stride: Step between output pixels; the output side is ``ceil(side / stride)``.
        dilation: Step between kernel taps.
        bias: Add a learned number to each channel.
        activation: ``"gelu"`` to apply it in the same pass, or None.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, C, H, W)`` to ``(N, C, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: If an argument is not positive, ``kernel_size`` is even, or ``activation`` is
            another.

    Example:
        >>> layer = DepthwiseConv2d(8, kernel_size=7, dilation=3)
        >>> layer(torch.randn(1, 8, 20, 15)).shape, layer.weight.shape
        (torch.Size([1, 8, 20, 15]), torch.Size([8, 1, 7, 7]))
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        activation: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("channels", channels), ("stride", stride), ("dilation", dilation)):
            _checks.check_positive(name, value)
        _checks.check_positive("kernel_size", kernel_size, odd=True)
        _checks.check_one_of("activation", activation, (None, "gelu"))
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        padding = dilation * (kernel_size // 2)
        super().__init__(
            channels, channels, kernel_size, stride, padding, dilation, channels, bias, **where
        )
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        return depthwise_conv2d(
            input,
            self.weight,
            self.bias,
            stride=self.stride[0],
            dilation=self.dilation[0],
            activation=self.activation,
        )

    def extra_repr(self) -> str:
        activation = "" if self.activation is None else f", activation={self.activation!r}"
        inherited: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return inherited + activation
