"""The attentions that fold into an X-volution: by shifting, and by generating weights.

What folds has what :class:`WindowAttention` names: values that are linear in the input, and a
kernel for every pixel that is applied to them.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from volution.ops import _checks
from volution.ops._shared.neighbourhood import gather
from volution.ops.involution import Involution2d, KernelGenerator
from volution.ops.xvolution.op import Offsets, flat_offsets, pssa2d, pssa_kernel
from volution.ops.xvolution.projection import apply_value, every, linear

# One call in traced graphs, so that symbolic tracing does not stop at the argument checks.
torch.fx.wrap("pssa2d")
torch.fx.wrap("pssa_kernel")
torch.fx.wrap("gather")


@runtime_checkable
class WindowAttention(Protocol):
    """An attention that folds: a kernel of every pixel's own, applied to a map of values.

    Its forward pass has to be ``gather(value(x), kernel(x), offsets, stride=stride)``.
    """

    offsets: tuple[int, ...]  # row and column of each tap, flat
    value: nn.Module  # a 1 by 1 convolution without a bias, or an identity

    def kernel(self, input: Tensor) -> Tensor:
        """Return the weights, ``(N, heads, D, h, w)``."""


class PSSA(nn.Module):
    """Pixel shift self-attention: queries, keys and values by 1 by 1 convolutions, then a window.

    Without biases it is a polynomial of third degree in its input, so it needs a norm behind it,
    as in :class:`Xvolution2d`, before it is stacked.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output and of the values; as many as the input by default.
        kernel_size: Side of the window, odd. Unused where ``offsets`` are given.
        stride: Step between output pixels; the output side is ``ceil(side / stride)``.
        heads: Groups of channels that attend on their own; divides ``out_channels`` and
            ``qk_channels``.
        groups: Groups of the values' convolution. With ``in_channels`` of them, as many as
            ``out_channels``, each channel is scaled on its own.
        dilation: Step between the taps of the window.
        qk_channels: Channels of queries and keys, all heads together; ``out_channels`` by default.
        offsets: Where to look instead of a window, see :func:`volution.ops.pssa2d`.
        scale: Factor of the weights; ``(qk_channels / heads) ** -0.5`` by default.
        normalize: ``"none"`` or ``"softmax"``, see :func:`volution.ops.pssa2d`.
        bias: Add a learned number to each channel of the queries and keys. Values have none:
            near the border it would reach the output through fewer taps, which no constant of a
            folded layer could stand for.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: If an argument is not positive, ``kernel_size`` is even, ``heads`` or
            ``groups`` do not divide the channels, or ``offsets`` are empty or have duplicates.

    Example:
        >>> layer = PSSA(16, 32, kernel_size=5, stride=2, heads=4)
        >>> layer(torch.randn(1, 16, 9, 7)).shape
        torch.Size([1, 32, 5, 4])

    References:
        Chen, Wang, Ni, "X-volution: On the Unification of Convolution and Self-attention", 2021.
        https://arxiv.org/abs/2106.02253
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        heads: int = 1,
        groups: int = 1,
        dilation: int = 1,
        qk_channels: int | None = None,
        offsets: Offsets | None = None,
        scale: float | None = None,
        normalize: str = "none",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = in_channels if out_channels is None else out_channels
        wide = width if qk_channels is None else qk_channels
        for name, value in (
            ("in_channels", in_channels),
            ("out_channels", width),
            ("stride", stride),
            ("heads", heads),
            ("qk_channels", wide),
        ):
            _checks.check_positive(name, value)
        _checks.check_divides("heads", heads, "out_channels", width)
        _checks.check_divides("heads", heads, "qk_channels", wide)
        _checks.check_one_of("normalize", normalize, ("none", "softmax"))
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.offsets = flat_offsets(offsets, kernel_size, dilation)
        self.stride = stride
        self.heads = heads
        self.scale = (wide // heads) ** -0.5 if scale is None else scale
        self.normalize = normalize
        self.query = nn.Conv2d(in_channels, wide, 1, bias=bias, **where)
        self.key = nn.Conv2d(in_channels, wide, 1, bias=bias, **where)
        self.value = linear(in_channels, width, groups, **where)

    def forward(self, input: Tensor) -> Tensor:
        return pssa2d(
            self.query(every(input, self.stride)),
            self.key(input),
            apply_value(self.value, input),
            heads=self.heads,
            offsets=self.offsets,
            stride=self.stride,
            scale=self.scale,
            normalize=self.normalize,
        )

    def kernel(self, input: Tensor) -> Tensor:
        """Return the weights of every pixel, shape ``(N, heads, D, h, w)``."""
        q, k = self.query(every(input, self.stride)), self.key(input)
        rest = (self.heads, self.offsets, self.stride, self.scale, self.normalize)
        return pssa_kernel(q, k, *rest)

    def extra_repr(self) -> str:
        return (
            f"stride={self.stride}, heads={self.heads}, taps={len(self.offsets) // 2}, "
            f"scale={self.scale:.4g}, normalize={self.normalize!r}"
        )


class InvolutionAttention(nn.Module):
    """An involution as the attention of an X-volution: weights generated, not compared.

    Where the channels change, a 1 by 1 convolution without a bias comes first; otherwise the
    values are the input itself. The parameters are those of :class:`volution.ops.Involution2d`.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        heads: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.value: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.value = linear(in_channels, out_channels, groups, **where)
        steps: dict[str, Any] = {"stride": stride, "dilation": dilation, "groups": heads}
        made = Involution2d(out_channels, kernel_size, **steps, **where)
        self.heads = made.groups
        self.stride = stride
        self.offsets = flat_offsets(None, kernel_size, dilation)
        # Always the generator itself: none was given.
        self.kernel_generator = cast(KernelGenerator, made.kernel_generator)

    def forward(self, input: Tensor) -> Tensor:
        values = apply_value(self.value, input)
        return gather(values, self._generate(values), self.offsets, stride=self.stride)

    def kernel(self, input: Tensor) -> Tensor:
        """Return the weights of every pixel, shape ``(N, heads, D, h, w)``."""
        return self._generate(apply_value(self.value, input))

    def _generate(self, values: Tensor) -> Tensor:
        flat: Tensor = self.kernel_generator(values)
        return flat.reshape(flat.shape[0], self.heads, -1, flat.shape[-2], flat.shape[-1])

    def fuse(self) -> InvolutionAttention:
        """Return a copy whose kernel generator has its norm folded into its convolution."""
        fused = copy.deepcopy(self)
        fused.kernel_generator = self.kernel_generator.fuse()
        return fused

    def extra_repr(self) -> str:
        taps = len(self.offsets) // 2
        return f"stride={self.stride}, heads={self.heads}, taps={taps}"
