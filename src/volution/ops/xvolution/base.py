"""What both forms of an X-volution share: their arguments, and how they present themselves."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from volution.ops._shared.depthwise import DepthwiseConv2d
from volution.ops.xvolution.attention import PSSA, InvolutionAttention
from volution.ops.xvolution.global_attention import GlobalAttention
from volution.ops.xvolution.op import Offsets
from volution.ops.xvolution.settings import Attention, Pair, Settings, settings_of

# What the attention adds to the convolution at the start, in standard deviations: the room's README
# has what other numbers did to training.
_FIRST_SHARE = 0.1


Layer = TypeVar("Layer", bound="XvolutionBase")


class XvolutionBase(nn.Module):
    """An X-volution, trained or folded; the arguments are those of :class:`Xvolution2d`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair = 3,
        stride: Pair = 1,
        padding: str | Pair = "same",
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        heads: int | None = None,
        attention: Attention = "pssa",
        branches: str = "both",
        attention_kernel_size: int | None = None,
        attention_dilation: int | None = None,
        offsets: Offsets | None = None,
        normalize: str | None = None,
        scale: float | None = None,
        qk_channels: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made = settings_of(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            heads,
            attention,
            branches,
            attention_kernel_size,
            attention_dilation,
            offsets,
            normalize,
            scale,
            qk_channels,
        )
        self.settings = made
        # As those of nn.Conv2d, for whoever asks the layer it stands in for.
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = (made.kernel_size, made.kernel_size)
        self.stride = (made.stride, made.stride)
        self.padding = (made.padding, made.padding)
        self.dilation = (made.dilation, made.dilation)
        self.groups = groups
        self.padding_mode = padding_mode
        self._build(made, {"device": device, "dtype": dtype})

    def _build(self, settings: Settings, where: dict[str, Any]) -> None:
        raise NotImplementedError

    @classmethod
    def from_settings(cls: type[Layer], settings: Settings, **where: Any) -> Layer:
        """Return a layer of checked and completed arguments."""
        return cls(**settings.arguments(), **where)

    def extra_repr(self) -> str:
        made = self.settings
        kind = made.attention if isinstance(made.attention, str) else "own"
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={made.kernel_size}",
            f"stride={made.stride}, dilation={made.dilation}, groups={self.groups}",
            f"attention={kind!r}, branches={made.branches!r}",
        ]
        return ", ".join(parts)


def build_conv(settings: Settings, where: dict[str, Any]) -> nn.Conv2d:
    """Return the convolution branch; a depthwise one runs on our own operator."""
    made = settings
    steps: dict[str, Any] = {"stride": made.stride, "dilation": made.dilation, "bias": made.bias}
    if made.depthwise:
        return DepthwiseConv2d(made.in_channels, made.kernel_size, **steps, **where)
    steps |= {"padding": made.padding, "groups": made.groups}
    return nn.Conv2d(made.in_channels, made.out_channels, made.kernel_size, **steps, **where)


def build_attention_norm(settings: Settings, where: dict[str, Any]) -> nn.BatchNorm2d:
    """Return the norm after the attention: beside a convolution it starts small."""
    norm = nn.BatchNorm2d(settings.out_channels, **where)
    if settings.branches == "both":
        nn.init.constant_(norm.weight, _FIRST_SHARE)
    return norm


def build_attention(settings: Settings, where: dict[str, Any]) -> nn.Module:
    """Return the attention branch: one of ours, or what the user's factory makes."""
    made, first, last = settings, settings.in_channels, settings.out_channels
    steps: dict[str, Any] = {"stride": made.stride, "groups": made.groups}
    if callable(made.attention):
        return made.attention(first, last, made.stride).to(**where)
    if made.attention == "involution":
        size, dilation = made.attention_kernel_size, made.attention_dilation
        steps |= {"dilation": dilation, "heads": made.heads}
        return InvolutionAttention(first, last, size, **steps, **where)
    steps |= {"heads": made.heads or 1, "qk_channels": made.qk_channels}
    steps |= {"scale": made.scale, "normalize": made.normalize}
    if made.attention == "sa":
        return GlobalAttention(first, last, **steps, **where)
    steps |= {"dilation": made.attention_dilation, "offsets": made.offsets}
    return PSSA(first, last, made.attention_kernel_size, **steps, **where)
