"""RedNet: ResNet whose spatial convolutions are involutions.

Paper: Li et al., "Involution: Inverting the Inherence of Convolution for Visual Recognition",
CVPR 2021, https://arxiv.org/abs/2103.06255. Authors' code and weights: d-li14/involution, MIT.
What differs from the authors' networks:
- one class serves classification and dense prediction: their copies for detection and
  segmentation have a 7 by 7 involution in the stem (``stem_kernel_size=7``) and no classifier;
- images of any size work, also where a stride meets an odd size;
- the output stride can be reduced, with dilated involutions.
Their checkpoints load unchanged, see :func:`volution.models.load_official`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import get_act_layer, get_norm_layer
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from volution.models import _resnet_layers
from volution.models._pyramid import Pyramid
from volution.models._resnet_layers import ConvNorm, Layer, residual_stages
from volution.models.official import checkpoint_filter_fn
from volution.models.weights import with_weights
from volution.ops import Involution2d

__all__ = ["Bottleneck", "RedNet"]


class Bottleneck(_resnet_layers.Bottleneck):
    """A residual bottleneck: 1 by 1 convolution, involution, 1 by 1 convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; the involution works on a quarter of them.
        stride: Step of the involution and of the shortcut.
        dilation: Step between the taps of the involution.
        kernel_size: Side of the involution's window.
        group_channels: Channels that share an involution kernel.
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
        stride: int = 1,
        dilation: int = 1,
        kernel_size: int = 7,
        group_channels: int = 16,
        drop_path: float = 0.0,
        norm_layer: Layer = nn.BatchNorm2d,
        act_layer: Layer = nn.ReLU,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        where: dict[str, Any] = {"device": device, "dtype": dtype}

        def spatial(
            channels: int, _: int, stride: int, dilation: int
        ) -> tuple[nn.Module, nn.Module]:
            layer = Involution2d(
                channels, kernel_size, stride, dilation, group_channels=group_channels, **where
            )
            return layer, norm_layer(channels, **where)

        super().__init__(
            in_channels,
            out_channels,
            stride,
            (dilation, dilation),
            spatial,
            drop_path,
            norm_layer,
            act_layer,
            **where,
        )


class RedNet(Pyramid):
    """ResNet with involutions in the place of its 3 by 3 convolutions.

    Args:
        depths: Blocks of each stage.
        widths: Channels of each stage. The stem makes a quarter of the first.
        num_classes: Classes of the classifier; 0 leaves it out.
        in_chans: Channels of the image.
        global_pool: Pooling before the classifier, as in timm.
        output_stride: 32, 16 or 8: how much smaller the last map is than the image.
        kernel_size: Side of the involutions' windows in the stages.
        stem_kernel_size: The same in the stem: 3 in the authors' classification networks, 7 in
            their copies for detection and segmentation.
        group_channels: Channels that share an involution kernel.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Probability of leaving out the last block's branch, in training; it
            rises linearly from 0 at the first block.
        zero_init_last: Let every block start as its shortcut: zero scale in its last norm.
        norm_layer: Makes a normalisation from its width, or its timm name.
        act_layer: Makes an activation, or its timm name.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, in_chans, H, W)`` to ``(N, num_classes)``. The taps ``stem`` and ``layer1`` to
        ``layer4`` give maps 2, 4, 8, 16 and 32 times smaller than the image, rounded up.

    Raises:
        ValueError: If ``output_stride`` is another, or a width is no multiple of 4.

    Example:
        >>> net = RedNet(depths=(1, 1, 1, 1), widths=(64, 128, 256, 512), num_classes=5)
        >>> net(torch.randn(1, 3, 65, 50)).shape
        torch.Size([1, 5])
        >>> [tuple(x.shape[1:]) for x in net.forward_intermediates(
        ...     torch.randn(1, 3, 65, 50), indices=[0, 1, 4], intermediates_only=True)]
        [(16, 33, 25), (64, 17, 13), (512, 3, 2)]
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (256, 512, 1024, 2048),
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int = 32,
        kernel_size: int = 7,
        stem_kernel_size: int = 3,
        group_channels: int = 16,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        zero_init_last: bool = True,
        norm_layer: Layer | str = nn.BatchNorm2d,
        act_layer: Layer | str = nn.ReLU,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        if len(depths) != 4 or len(widths) != 4 or any(width % 4 for width in widths):
            raise ValueError(
                f"depths and widths must have one number for each of four stages, widths in "
                f"multiples of 4, got depths={tuple(depths)} and widths={tuple(widths)}"
            )
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        norm: Layer = get_norm_layer(norm_layer)
        act: Layer = get_act_layer(act_layer)
        channels = widths[0] // 4
        self.stem = _stem(in_chans, channels, stem_kernel_size, group_channels, norm, act, where)
        self.feature_info = [{"num_chs": channels, "reduction": 2, "module": "stem"}]
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        def block(stage: int, stride: int, dilations: tuple[int, int], **sizes: Any) -> nn.Module:
            return Bottleneck(
                stride=stride,
                dilation=dilations[0],
                kernel_size=kernel_size,
                group_channels=group_channels,
                norm_layer=norm,
                act_layer=act,
                **sizes,
                **where,
            )

        stages = residual_stages(block, channels, depths, widths, output_stride, drop_path_rate)
        for name, layers, tap in stages:
            self.add_module(name, layers)
            self.feature_info.append(tap)
        self.add_head(global_pool, **where)
        self.init_weights(zero_init_last)

    def init_weights(self, zero_init_last: bool = True) -> None:
        """Draw the weights as the authors do: He's normal in the convolutions, by their outputs."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif zero_init_last and isinstance(module, Bottleneck):
                weight = getattr(module.bn3, "weight", None)
                if weight is not None:
                    nn.init.zeros_(weight)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the patterns by which timm groups parameters: by stage if coarse, or by block."""
        return {"stem": r"^stem", "blocks": r"^layer(\d+)" + ("" if coarse else r"\.(\d+)")}


def _stem(
    in_chans: int,
    channels: int,
    kernel_size: int,
    group_channels: int,
    norm: Layer,
    act: Layer,
    where: dict[str, Any],
) -> nn.Sequential:
    """Make the stem; the numbers of its layers are those of the authors' checkpoints."""
    half = channels // 2

    def convolution(inputs: int, outputs: int, stride: int) -> ConvNorm:
        conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False, **where)
        layers = {"conv": conv, "bn": norm(outputs, **where), "act": act(inplace=True)}
        return ConvNorm(OrderedDict(layers))

    return nn.Sequential(
        convolution(in_chans, half, 2),
        Involution2d(half, kernel_size, group_channels=group_channels, **where),
        norm(half, **where),
        act(inplace=True),
        convolution(half, channels, 1),
    )


def _cfg(**changes: Any) -> dict[str, Any]:
    return {
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "num_classes": 1000,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "first_conv": "stem.0.conv",
        "classifier": "head.fc",
        "license": "mit",
        "origin_url": "https://github.com/d-li14/involution",
        "paper_name": "Involution: Inverting the Inherence of Convolution for Visual Recognition",
        "paper_ids": "arXiv:2103.06255",
        "description": "The authors' weights load from a file: checkpoint_path=..., or "
        "pretrained=True with pretrained_cfg_overlay=dict(file=...).",
        **changes,
    }


default_cfgs = generate_default_cfgs(
    {f"rednet{depth}.in1k": _cfg() for depth in (26, 38, 50, 101, 152)}
)


REPORTED_TOP1 = {
    "rednet26": 75.96,
    "rednet38": 77.48,
    "rednet50": 78.35,
    "rednet101": 78.92,
    "rednet152": 79.12,
}
"""ImageNet-1k top-1 in per cent as the authors report it; nothing measured here."""


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **own: Any) -> nn.Module:
    net: nn.Module = build_model_with_cfg(
        RedNet,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3, 4)},
        **{**own, **with_weights(variant, pretrained, kwargs)},
    )
    return net


@register_model
def rednet26(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a RedNet-26; keyword arguments are those of :class:`RedNet`."""
    return _create("rednet26", pretrained, kwargs, depths=(1, 2, 4, 1))


@register_model
def rednet38(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a RedNet-38; keyword arguments are those of :class:`RedNet`."""
    return _create("rednet38", pretrained, kwargs, depths=(2, 3, 5, 2))


@register_model
def rednet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a RedNet-50; keyword arguments are those of :class:`RedNet`."""
    return _create("rednet50", pretrained, kwargs, depths=(3, 4, 6, 3))


@register_model
def rednet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a RedNet-101; keyword arguments are those of :class:`RedNet`."""
    return _create("rednet101", pretrained, kwargs, depths=(3, 4, 23, 3))


@register_model
def rednet152(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a RedNet-152; keyword arguments are those of :class:`RedNet`."""
    return _create("rednet152", pretrained, kwargs, depths=(3, 8, 36, 3))
