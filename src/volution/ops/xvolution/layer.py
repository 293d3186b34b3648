"""The X-volution layer: a convolution and an attention, each with its norm, summed.

Paper: https://arxiv.org/abs/2106.02253. The authors published no code; the definition here is ours
from their equations, and what makes it one is tested: folded and unfolded layer agree.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from volution.ops._shared.depthwise import DepthwiseConv2d
from volution.ops._shared.folding import fold_batch_norm, is_fixed_affine
from volution.ops.xvolution.base import (
    XvolutionBase,
    build_attention,
    build_attention_norm,
    build_conv,
)
from volution.ops.xvolution.effective import EffectiveKernel, conv_kernel
from volution.ops.xvolution.folded import FoldedXvolution2d
from volution.ops.xvolution.settings import Settings


class Xvolution2d(XvolutionBase):
    """Convolve and attend, normalise each, add: in training two branches, folded a convolution.

    A drop-in for a padded ``nn.Conv2d`` with a square, odd kernel. In evaluation :meth:`fuse`
    returns one convolution whose kernel depends on the content at every pixel; no norm is left.
    Without biases the attention is a polynomial of third degree in the input, which its own
    BatchNorm keeps bounded: in a new layer that norm's scale starts at 0.1 beside a convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the convolution's kernel, odd.
        stride: Step between output pixels; the output side is ``ceil(side / stride)``.
        padding: ``"same"``, or the number that comes to the same thing,
            ``dilation * (kernel_size - 1) // 2``. No other can be honoured.
        dilation: Step between the taps of the kernel.
        groups: Groups of the convolution; the attention's values are grouped like it.
        bias: Give the convolution a bias.
        padding_mode: ``"zeros"``; no other can be honoured.
        heads: Groups of output channels that attend on their own. By default 1; for involution
            as many as leave each at least 16 channels. Your own attention has its own.
        attention: ``"pssa"``, pixel shift self-attention; ``"involution"``, weights generated
            from each pixel; ``"sa"``, global self-attention, which does not fold; or a function
            ``(in_channels, out_channels, stride)`` that makes a module of that shape, which folds
            if it has ``offsets``, ``value`` and ``kernel()`` as :class:`PSSA` has.
        branches: ``"both"``, or ``"conv"`` or ``"attention"`` alone, to see what each is worth.
        attention_kernel_size: Side of the attention's window; ``kernel_size`` by default. Of no
            effect on global attention and your own, as the next.
        attention_dilation: Step between its taps; ``dilation`` by default.
        offsets: Where the attention looks instead, see :func:`volution.ops.pssa2d`.
        normalize: ``"none"`` or ``"softmax"``, see :func:`volution.ops.pssa2d`. By default
            ``"none"``; ``"softmax"`` for global self-attention.
        scale: Factor of the attention's weights; one over the root of a head's query width by
            default.
        qk_channels: Channels of queries and keys; ``out_channels`` by default.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: If the layer cannot honour an argument; the message names it.

    Example:
        >>> layer = Xvolution2d(16, 32, stride=2, heads=4).eval()
        >>> x = torch.randn(2, 16, 9, 7)
        >>> layer(x).shape
        torch.Size([2, 32, 5, 4])
        >>> torch.allclose(layer.fuse()(x), layer(x), atol=1e-5)
        True

    References:
        Chen, Wang, Ni, "X-volution: On the Unification of Convolution and Self-attention", 2021.
        https://arxiv.org/abs/2106.02253
    """

    conv: nn.Conv2d | None
    conv_norm: nn.Module | None
    attention: nn.Module | None
    attention_norm: nn.Module | None

    def _build(self, settings: Settings, where: dict[str, Any]) -> None:
        self.conv = self.conv_norm = self.attention = self.attention_norm = None
        if settings.branches != "attention":
            self.conv = build_conv(settings, where)
            self.conv_norm = nn.BatchNorm2d(settings.out_channels, **where)
        if settings.branches != "conv":
            self.attention = build_attention(settings, where)
            self.attention_norm = build_attention_norm(settings, where)

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, **settings: Any
    ) -> Xvolution2d:
        """Return a layer that computes, in evaluation, what a convolution does already.

        The convolution's weights are carried over and the attention starts switched off: scale
        and shift of its norm are zero. Training switches it on.

        Args:
            conv: The convolution.
            norm: The BatchNorm after it, to be absorbed; the caller takes it out of the network.
                Without one the layer's own norm starts as an identity of evaluation.
            **settings: Those of :class:`Xvolution2d` that ``conv`` does not say.

        Raises:
            ValueError: If the layer cannot stand in for the convolution, or take its norm.
            TypeError: If ``conv`` is another layer, or ``settings`` has names of no argument.

        Example:
            >>> conv, x = nn.Conv2d(8, 8, 3, padding=1), torch.randn(1, 8, 6, 6)
            >>> torch.allclose(Xvolution2d.from_conv(conv).eval()(x), conv(x), atol=1e-6)
            True
        """
        # By exact type: subclasses pad or activate in their own ways.
        known = type(conv) is nn.Conv2d or (
            type(conv) is DepthwiseConv2d and conv.activation is None
        )
        if not known:
            raise TypeError(f"conv must be a plain torch.nn.Conv2d, got {conv}")
        if norm is not None and not is_fixed_affine(norm):
            raise ValueError(f"norm must be a BatchNorm2d with running statistics, got {norm}")
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            **settings,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        if layer.conv is None:
            raise ValueError("branches must be 'both' or 'conv' to carry a convolution over")
        layer.conv.load_state_dict(conv.state_dict())
        if norm is not None:
            layer.conv_norm = copy.deepcopy(norm)
        else:
            own = cast(nn.BatchNorm2d, layer.conv_norm)
            assert own.running_var is not None
            nn.init.constant_(own.running_var, 1 - own.eps)
        layer.start_as_convolution()
        return layer.train(conv.training)

    @torch.no_grad()
    def start_as_convolution(self) -> None:
        """Switch the attention off, until training switches it on: set its norm to zero."""
        if self.attention_norm is not None:
            nn.init.zeros_(cast(Tensor, self.attention_norm.weight))
            nn.init.zeros_(cast(Tensor, self.attention_norm.bias))

    def forward(self, input: Tensor) -> Tensor:
        if self.conv is None or self.conv_norm is None:
            return self._attend(input)
        out: Tensor = self.conv_norm(self.conv(input))
        return out if self.attention is None else out + self._attend(input)

    def _attend(self, input: Tensor) -> Tensor:
        assert self.attention is not None
        assert self.attention_norm is not None
        out: Tensor = self.attention_norm(self.attention(input))
        return out

    def fuse(self) -> nn.Module:
        """Return one layer that computes the same in evaluation, with no norm left.

        Returns:
            :class:`FoldedXvolution2d`, or a plain ``nn.Conv2d`` for ``branches="conv"``.

        Raises:
            ValueError: In training mode, in which BatchNorm depends on the batch; for an
                attention that is no window, as ``"sa"``; for norms that are no BatchNorm.
        """
        self._check_evaluating("fuse()")
        if self.attention is None:
            assert self.conv is not None
            assert self.conv_norm is not None
            return fold_batch_norm(self.conv, self.conv_norm)[0]
        assert self.attention_norm is not None
        folded = FoldedXvolution2d.from_settings(self.settings, device="meta")
        folded.fold(self.conv, self.conv_norm, self.attention, self.attention_norm)
        return folded.eval()

    def fuse_convolution(self) -> Xvolution2d:
        """Return a copy whose convolution has its norm folded in; the attention stays a branch.

        For an attention that does not fold.

        Raises:
            ValueError: In training mode.
        """
        self._check_evaluating("fuse_convolution()")
        fused = copy.deepcopy(self)
        if fused.conv is not None and fused.conv_norm is not None:
            pair = fold_batch_norm(fused.conv, fused.conv_norm)
            fused.conv, fused.conv_norm = cast(nn.Conv2d, pair[0]), pair[1]
        return fused

    def effective_kernel(self, input: Tensor, pixel: tuple[int, int]) -> EffectiveKernel:
        """Return the kernel that is applied at a pixel, see :class:`EffectiveKernel`.

        Args:
            input: Feature map, ``(N, in_channels, H, W)``.
            pixel: Row and column of the output pixel.

        Raises:
            ValueError: As :meth:`fuse`, or if there is no such pixel.
        """
        self._check_evaluating("effective_kernel()")
        folded = self.fuse()
        if isinstance(folded, FoldedXvolution2d):
            return folded.effective_kernel(input, pixel)
        return conv_kernel(cast(nn.Conv2d, folded), input, pixel)

    def _check_evaluating(self, name: str) -> None:
        if self.training:
            raise ValueError(
                f"{name} needs the layer in evaluation mode, got one in training mode, which "
                f"normalises by its batch; call eval() first"
            )
