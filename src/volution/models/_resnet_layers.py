"""The layers of residual networks: what RedNet and the X-volution ResNets share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from timm.layers import DropPath
from timm.utils import reparameterize_model
from torch import Tensor, nn

from volution.models._stages import drop_path_rates, stage_steps
from volution.ops._shared.folding import fold_child_norm

Layer = Callable[..., nn.Module]
Block = TypeVar("Block", bound=nn.Module)

Spatial = Callable[[int, int, int, int], tuple[nn.Module, nn.Module]]
"""Makes a layer that mixes neighbours, and the norm that follows it, from the channels of its
input and output, its stride and its dilation."""


class ConvNorm(nn.Sequential):
    """A convolution, a norm, and perhaps an activation, one after the other."""

    def fuse(self) -> ConvNorm:
        """Return a copy in which the norm is folded into the convolution."""
        fused = copy.deepcopy(self)
        conv, norm, *_ = dict(fused.named_children())
        fold_child_norm(fused, conv, norm)
        return fused


class BasicBlock(nn.Module):
    """A residual block of two layers that mix neighbours, each as wide as the output.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step of the first layer and of the shortcut.
        dilations: Step between the taps of the first layer, and of the second.
        spatial: Makes such a layer and its norm.
        drop_path: Probability of leaving the branch out, in training.
        norm_layer: Makes a normalisation from its width.
        act_layer: Makes an activation.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.
        The shortcut has a convolution of its own where this changes anything.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        dilations: tuple[int, int],
        spatial: Spatial,
        drop_path: float = 0.0,
        norm_layer: Layer = nn.BatchNorm2d,
        act_layer: Layer = nn.ReLU,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = spatial(in_channels, out_channels, stride, dilations[0])
        self.act1 = act_layer(inplace=True)
        self.conv2, self.bn2 = spatial(out_channels, out_channels, 1, dilations[1])
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.downsample = shortcut(in_channels, out_channels, stride, norm_layer, device, dtype)
        self.act2 = act_layer(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.act1(self.bn1(self.conv1(x)))
        branch = self.drop_path(self.bn2(self.conv2(branch)))
        out: Tensor = self.act2(branch + self.downsample(x))
        return out

    def fuse(self) -> BasicBlock:
        """Return a copy whose norms are folded into the convolutions before them."""
        return fold_norms(self, ("conv1", "bn1"), ("conv2", "bn2"))


class Bottleneck(nn.Module):
    """A residual block of three layers: narrow to a quarter, mix neighbours, widen again.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; ``spatial`` works on a quarter of them.
        stride: Step of the middle layer and of the shortcut.
        dilations: As of a basic block; the middle layer has the first.
        spatial: Makes the middle layer and its norm.
        drop_path: Probability of leaving the branch out, in training.
        norm_layer: Makes a normalisation from its width.
        act_layer: Makes an activation.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.
        The shortcut has a convolution of its own where this changes anything.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        dilations: tuple[int, int],
        spatial: Spatial,
        drop_path: float = 0.0,
        norm_layer: Layer = nn.BatchNorm2d,
        act_layer: Layer = nn.ReLU,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        width = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False, **where)
        self.bn1 = norm_layer(width, **where)
        self.act1 = act_layer(inplace=True)
        self.conv2, self.bn2 = spatial(width, width, stride, dilations[0])
        self.act2 = act_layer(inplace=True)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False, **where)
        self.bn3 = norm_layer(out_channels, **where)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.downsample = shortcut(in_channels, out_channels, stride, norm_layer, device, dtype)
        self.act3 = act_layer(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.act1(self.bn1(self.conv1(x)))
        branch = self.act2(self.bn2(self.conv2(branch)))
        branch = self.drop_path(self.bn3(self.conv3(branch)))
        out: Tensor = self.act3(branch + self.downsample(x))
        return out

    def fuse(self) -> Bottleneck:
        """Return a copy whose norms are folded into the convolutions before them."""
        return fold_norms(self, ("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))


def shortcut(
    in_channels: int,
    out_channels: int,
    stride: int,
    norm_layer: Layer,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Make what a block's input passes to be added to its branch: nothing where the sizes agree."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    where: dict[str, Any] = {"device": device, "dtype": dtype}
    return ConvNorm(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False, **where),
        norm_layer(out_channels, **where),
    )


def fold_norms(block: Block, *pairs: tuple[str, str]) -> Block:
    """Return a copy of a block, its children fused and each norm in the convolution before it."""
    fused = cast(Block, reparameterize_model(block))
    for conv, norm in pairs:
        fold_child_norm(fused, conv, norm)
    return fused


def residual_stages(
    make_block: Callable[..., nn.Module],
    channels: int,
    depths: Sequence[int],
    widths: Sequence[int],
    output_stride: int,
    drop_path_rate: float,
) -> Iterator[tuple[str, nn.Sequential, dict[str, Any]]]:
    """Make the stages ``layer1`` to ``layer4``: name, blocks, and the tap for ``feature_info``.

    Args:
        make_block: Called with ``stage`` (from 1), ``in_channels``, ``out_channels``, ``stride``,
            ``dilations`` (of the block's first layer that mixes neighbours, and of others) and
            ``drop_path``.
        channels: Channels of the first stage's input, four times smaller than the image.
        depths: Blocks of each stage.
        widths: Channels of each stage.
        output_stride: 32, 16 or 8.
        drop_path_rate: Of the last block; it rises linearly from 0 at the first.
    """
    reduction, rates = 4, drop_path_rates(drop_path_rate, depths)
    for i, (stride, first_dilation, dilation) in enumerate(stage_steps(output_stride)):
        blocks = [
            make_block(
                stage=i + 1,
                in_channels=channels if block == 0 else widths[i],
                out_channels=widths[i],
                stride=stride if block == 0 else 1,
                dilations=(first_dilation if block == 0 else dilation, dilation),
                drop_path=rate,
            )
            for block, rate in enumerate(rates[i])
        ]
        channels, reduction, name = widths[i], reduction * stride, f"layer{i + 1}"
        tap = {"num_chs": channels, "reduction": reduction, "module": name}
        yield name, nn.Sequential(*blocks), tap
