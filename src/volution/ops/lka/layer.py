"""Large-kernel attention as modules.

Paper: https://arxiv.org/abs/2202.09741, authors' code: Visual-Attention-Network/VAN-Classification
(Apache-2.0). Differences: any kernel size and dilation that decompose, and
:meth:`LKA.equivalent_kernel`. Parameters have the authors' names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from volution.ops import _checks
from volution.ops._shared.depthwise import DepthwiseConv2d
from volution.ops._shared.pointwise import pointwise
from volution.ops.lka import reference
from volution.ops.lka.op import lka2d

# One call in traced graphs, so that symbolic tracing does not stop at the argument checks.
torch.fx.wrap("lka2d")
torch.fx.wrap("pointwise")


class LKA(nn.Module):
    """Multiply a map with its own large-kernel convolution, made of three small ones.

    A ``kernel_size`` by ``kernel_size`` convolution is taken apart into a depthwise one of side
    ``2 * dilation - 1``, a depthwise one of side ``ceil(kernel_size / dilation)`` with that
    dilation, and a 1 by 1 convolution. What it sees is a square of side ``reach``, a little
    more than ``kernel_size``.

    Args:
        dim: Channels ``C`` of input and output.
        kernel_size: Side of the convolution to stand in for.
        dilation: Step between the taps of the second convolution; ``ceil(kernel_size / dilation)``
            must be odd, so that it has a centre.
        device: Where the parameters live.
        dtype: What the parameters are.

    Attributes:
        reach: Side of the square of pixels that an output pixel depends on.

    Shape:
        ``(N, C, H, W)`` to the same.

    Raises:
        ValueError: If an argument is not positive, or ``ceil(kernel_size / dilation)`` is even;
            the message has the nearest values that work.

    Checkpoints of the authors' layer (``conv0``, ``conv_spatial``, ``conv1``) load as they are.

    Example:
        >>> layer = LKA(32)
        >>> layer.conv0.kernel_size, layer.conv_spatial.kernel_size, layer.reach
        ((5, 5), (7, 7), 23)
        >>> layer(torch.randn(1, 32, 14, 10)).shape
        torch.Size([1, 32, 14, 10])

    References:
        Guo et al., "Visual Attention Network", 2022. https://arxiv.org/abs/2202.09741
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 21,
        dilation: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _checks.check_positive("dim", dim)
        local_size, dilated_size = decompose(kernel_size, dilation)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.reach = local_size + dilation * (dilated_size - 1)
        self.conv0 = DepthwiseConv2d(dim, local_size, **where)
        self.conv_spatial = DepthwiseConv2d(dim, dilated_size, dilation=dilation, **where)
        self.conv1 = nn.Conv2d(dim, dim, 1, **where)

    def forward(self, input: Tensor) -> Tensor:
        return lka2d(
            input,
            self.conv0.weight,
            self.conv0.bias,
            self.conv_spatial.weight,
            self.conv_spatial.bias,
            self.conv1.weight,
            self.conv1.bias,
            dilation=self.dilation,
        )

    def equivalent_kernel(self) -> tuple[Tensor, Tensor]:
        """Return the one large depthwise kernel that the two depthwise convolutions amount to.

        ``F.conv2d(x, kernel, bias, padding=reach // 2, groups=C)`` then equals both of them in a
        row, at every pixel that is ``dilation * (ceil(kernel_size / dilation) // 2)`` or more
        away from the border (9 for the paper's layer). Nearer to it, the second convolution
        takes what the first would give outside the image for zero, and the large kernel does not.

        Returns:
            Kernel ``(C, 1, reach, reach)`` and bias ``(C,)``, with gradients to the parameters.

        Example:
            >>> kernel, bias = LKA(8, kernel_size=21, dilation=3).equivalent_kernel()
            >>> kernel.shape, bias.shape
            (torch.Size([8, 1, 23, 23]), torch.Size([8]))
        """
        near, far = self.conv0, self.conv_spatial
        return reference.equivalent_kernel(
            near.weight, near.bias, far.weight, far.bias, self.dilation
        )

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, dilation={self.dilation}, reach={self.reach}"


class LKAttention(nn.Module):
    """The attention of VAN: 1 by 1 convolution, GELU, :class:`LKA`, 1 by 1 convolution, shortcut.

    Args:
        dim: Channels ``C`` of input and output.
        kernel_size: As in :class:`LKA`.
        dilation: As in :class:`LKA`.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, C, H, W)`` to the same.

    Raises:
        ValueError: As :class:`LKA`.

    Example:
        >>> LKAttention(32)(torch.randn(1, 32, 14, 10)).shape
        torch.Size([1, 32, 14, 10])

    References:
        Guo et al., "Visual Attention Network", 2022. https://arxiv.org/abs/2202.09741
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 21,
        dilation: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _checks.check_positive("dim", dim)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.proj_1 = nn.Conv2d(dim, dim, 1, **where)
        self.spatial_gating_unit = LKA(dim, kernel_size, dilation, **where)
        self.proj_2 = nn.Conv2d(dim, dim, 1, **where)

    def forward(self, input: Tensor) -> Tensor:
        return self.branch(input, input)

    def branch(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Compute what the shortcut is added to, and add ``residual`` instead, if it is given."""
        x = pointwise(input, self.proj_1.weight, self.proj_1.bias, activation="gelu")
        x = self.spatial_gating_unit(x)
        return pointwise(x, self.proj_2.weight, self.proj_2.bias, residual=residual)


def decompose(kernel_size: int, dilation: int) -> tuple[int, int]:
    """Return the sides of the depthwise and of the dilated depthwise kernel.

    Raises:
        ValueError: If an argument is not positive, or the second side would be even.

    Example:
        >>> decompose(21, 3)
        (5, 7)
        >>> decompose(24, 3)
        Traceback (most recent call last):
        ValueError: ceil(kernel_size / dilation) must be odd, got ceil(24 / 3) = 8; take \
kernel_size=25 with dilation=3, or dilation=5 with kernel_size=24
    """
    _checks.check_positive("kernel_size", kernel_size)
    _checks.check_positive("dilation", dilation)
    side = -(-kernel_size // dilation)
    if side % 2 == 0:
        size = min(
            (dilation * (side - 1), dilation * side + 1), key=lambda size: abs(size - kernel_size)
        )
        # A dilation of the kernel size makes a side of 1, so there always is one.
        step = min(
            (step for step in range(1, kernel_size + 1) if -(-kernel_size // step) % 2),
            key=lambda step: abs(step - dilation),
        )
        raise ValueError(
            f"ceil(kernel_size / dilation) must be odd, got ceil({kernel_size} / {dilation}) = "
            f"{side}; take kernel_size={size} with dilation={dilation}, or dilation={step} with "
            f"kernel_size={kernel_size}"
        )
    return 2 * dilation - 1, side
