"""The folded X-volution: one convolution, whose kernel is partly fixed and partly each pixel's."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from volution.ops._shared.folding import batch_norm_affine, is_fixed_affine, with_affine_output
from volution.ops.xvolution.base import (
    XvolutionBase,
    build_attention,
    build_attention_norm,
    build_conv,
)
from volution.ops.xvolution.effective import EffectiveKernel, at_pixel, identity_matrix, joined
from volution.ops.xvolution.folded_attention import FoldedPSSA, FoldedWindow, fold_attention
from volution.ops.xvolution.settings import Settings
from volution.ops.xvolution.static_dynamic import static_dynamic_conv2d

# One call in traced graphs, so that symbolic tracing does not stop at the argument checks.
torch.fx.wrap("static_dynamic_conv2d")


class FoldedXvolution2d(XvolutionBase):
    """An X-volution in evaluation, as one content-dependent convolution: no norm is left.

    What :meth:`Xvolution2d.fuse` returns. Made from the same arguments it has the same parameters,
    so its state dict can be saved and loaded on its own. A depthwise one reads the map once, with
    a kernel that is partly fixed and partly each pixel's own; otherwise the values, with the scale
    of the attention's norm in them, are summed onto the folded convolution's result.

    Args: as :class:`Xvolution2d`.

    Raises:
        ValueError: As :class:`Xvolution2d`; and for an attention that is no window, or
            ``branches="conv"``, which folds to a plain ``nn.Conv2d``.

    Example:
        >>> from volution.ops import Xvolution2d
        >>> trained = Xvolution2d(8, 8, heads=2).eval()
        >>> again = FoldedXvolution2d(8, 8, heads=2)
        >>> again.load_state_dict(trained.fuse().state_dict())
        <All keys matched successfully>
    """

    attention: FoldedPSSA | FoldedWindow
    conv: nn.Conv2d | None
    weight: nn.Parameter | None
    scale: nn.Parameter | None
    bias: nn.Parameter | None

    def _build(self, settings: Settings, where: dict[str, Any]) -> None:
        if settings.branches == "conv":
            raise ValueError("branches='conv' folds to a plain torch.nn.Conv2d; build that")
        conv = conv_norm = None
        if settings.branches == "both":
            conv = build_conv(settings, where)
            conv_norm = nn.BatchNorm2d(settings.out_channels, **where).eval()
        norm = build_attention_norm(settings, where).eval()
        self.fold(conv, conv_norm, build_attention(settings, where).eval(), norm)

    @torch.no_grad()
    def fold(
        self,
        conv: nn.Conv2d | None,
        conv_norm: nn.Module | None,
        attention: nn.Module,
        attention_norm: nn.Module,
    ) -> None:
        """Become the parts of an :class:`Xvolution2d` in evaluation, which are left as they are.

        Raises:
            ValueError: If the attention is no window, or a norm is no BatchNorm in evaluation.
        """
        gain, shift = _affine("attention_norm", attention_norm)
        self.attention, scale = fold_attention(self.settings, attention, gain)
        like = next(attention.parameters()) if conv is None else conv.weight
        self.scale = None if scale is None else _parameter(scale, like)
        self.conv = self.weight = None
        if conv is None:
            self.bias: nn.Parameter | None = _parameter(shift, like)
            return
        assert conv_norm is not None
        conv_gain, conv_shift = _affine("conv_norm", conv_norm)
        whole = with_affine_output(conv, conv_gain, conv_shift + shift)
        if self.settings.depthwise:
            self.weight, self.bias = nn.Parameter(whole.weight), cast(nn.Parameter, whole.bias)
        else:
            self.conv, self.bias = whole, None

    def forward(self, input: Tensor) -> Tensor:
        values, kernel = self.attention(input)
        steps = {"stride": self.settings.stride, "dilation": self.settings.dilation}
        return static_dynamic_conv2d(
            values,
            kernel,
            self.attention.offsets,
            weight=self.weight,
            scale=self.scale,
            bias=self.bias,
            residual=None if self.conv is None else self.conv(input),
            **steps,
        )

    def effective_kernel(self, input: Tensor, pixel: tuple[int, int]) -> EffectiveKernel:
        """Return the kernel that is applied at a pixel, as :meth:`Xvolution2d.effective_kernel`."""
        _, kernel = self.attention(input)
        own = at_pixel(kernel, pixel, self.out_channels)  # N C_out D
        if self.scale is not None:
            own = own * self.scale[:, None]
        matrix = self.attention.matrix()
        if matrix is None:
            matrix = identity_matrix(self.out_channels, self.groups, own)
        own = own[:, :, None] * matrix[:, :, None]  # N C_out C_in/groups D
        fixed, bias = (self.weight, self.bias) if self.conv is None else self.conv.parameters()
        assert bias is not None
        if fixed is None:
            return EffectiveKernel(own, bias, self.attention.offsets)
        return joined(fixed, own, bias, self.settings.dilation, self.attention.offsets)


def _affine(name: str, norm: nn.Module) -> tuple[Tensor, Tensor]:
    if not is_fixed_affine(norm):
        raise ValueError(
            f"{name} must be a BatchNorm2d with running statistics to fold, got {norm}"
        )
    return batch_norm_affine(norm)


def _parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(like.device, like.dtype))
