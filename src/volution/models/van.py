"""VAN: a pyramid of large-kernel attention.

Paper: Guo et al., "Visual Attention Network", 2022, https://arxiv.org/abs/2202.09741. Authors'
code and weights: Visual-Attention-Network/VAN-Classification, Apache-2.0. What differs from the
authors' networks:
- one class serves classification and dense prediction: their copies for segmentation have another
  epsilon in the norms between the stages (``norm_eps=1e-5``) and no classifier;
- the patch embedding, the blocks and the norm of a stage are children of one module;
- kernel size and dilation of the attention are arguments.
Their checkpoints load unchanged, see :func:`volution.models.load_official`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import LayerNorm2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from volution.models._patch_embed import PatchEmbed
from volution.models._pyramid import Pyramid
from volution.models._stages import (
    check_output_stride,
    check_stages,
    drop_path_rates,
    match_stages,
)
from volution.models._van_layers import Block, Stage, rename_official
from volution.models.official import checkpoint_filter_fn
from volution.models.weights import with_addresses, with_weights

__all__ = ["VAN"]


class VAN(Pyramid):
    """Four stages of large-kernel attention.

    Args:
        depths: Blocks of each stage.
        widths: Channels of each stage.
        mlp_ratios: Width of the MLPs of each stage, in multiples of its channels.
        num_classes: Classes of the classifier; 0 leaves it out.
        in_chans: Channels of the image.
        global_pool: Pooling before the classifier, as in timm.
        output_stride: 32; the parameter is there for callers that always give it.
        kernel_size: Side of the convolution that the attention stands in for, see
            :class:`volution.ops.LKA`.
        dilation: Step between the taps of the attention's second convolution.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Probability of leaving out the last block's branches, in training; it
            rises linearly from 0 at the first block.
        layer_scale_init_value: What the scales of the branches start from.
        norm_eps: Of the norms at the end of the stages: 1e-6 in the authors' classification
            networks, 1e-5 in their copy for segmentation.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, in_chans, H, W)`` to ``(N, num_classes)``. The taps ``stage1`` to ``stage4`` give
        maps 4, 8, 16 and 32 times smaller than the image, rounded up.

    Raises:
        ValueError: If ``output_stride``, ``kernel_size`` or ``dilation`` cannot be, or there are
            not four stages; for images of less than 32 by 32 pixels.

    Example:
        >>> net = VAN(depths=(1, 1, 1, 1), widths=(8, 16, 32, 64), num_classes=5)
        >>> net(torch.randn(2, 3, 65, 50)).shape
        torch.Size([2, 5])
        >>> [tuple(x.shape[1:]) for x in net.forward_intermediates(
        ...     torch.randn(2, 3, 65, 50), indices=[0, 3], intermediates_only=True)]
        [(8, 17, 13), (64, 3, 2)]
    """

    output_strides: ClassVar[tuple[int, ...]] = (32,)
    smallest_image: ClassVar[int] = 32
    head_init_std: ClassVar[float] = 0.02

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 12, 3),
        widths: Sequence[int] = (64, 128, 320, 512),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int = 32,
        kernel_size: int = 21,
        dilation: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-2,
        norm_eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        check_stages(depths=depths, widths=widths, mlp_ratios=mlp_ratios)
        check_output_stride(output_stride, self.output_strides)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        channels, reduction = in_chans, 1
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            side, stride = (7, 4) if i == 0 else (3, 2)
            layers: dict[str, nn.Module] = {
                "downsample": PatchEmbed(channels, widths[i], side, stride, **where)
            }
            for block, rate in enumerate(rates):
                layers[str(block)] = Block(
                    widths[i],
                    mlp_ratios[i],
                    kernel_size,
                    dilation,
                    rate,
                    layer_scale_init_value,
                    **where,
                )
            layers["norm"] = LayerNorm2d(widths[i], eps=norm_eps, **where)
            channels, reduction, name = widths[i], reduction * stride, f"stage{i + 1}"
            self.add_module(name, Stage(OrderedDict(layers)))
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": name})
        self.add_head(global_pool, **where)
        self.init_weights()
        self.register_load_state_dict_pre_hook(rename_official)  # type: ignore[no-untyped-call]

    def init_weights(self) -> None:
        """Draw the convolutions as the authors do: normal, by their outputs."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                rows, columns = module.kernel_size
                fan_out = rows * columns * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Return the layer scales, which weight decay spares."""
        names = ("layer_scale_1", "layer_scale_2", "shortcut")
        return {key for key, _ in self.named_parameters() if key.endswith(names)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns by which timm groups parameters: by stage if coarse, or by block."""
        return match_stages(coarse)


def _cfg(**changes: Any) -> dict[str, Any]:
    return {
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "num_classes": 1000,
        "mean": IMAGENET_INCEPTION_MEAN,
        "std": IMAGENET_INCEPTION_STD,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "first_conv": "stage1.downsample.proj",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "origin_url": "https://github.com/Visual-Attention-Network/VAN-Classification",
        "paper_name": "Visual Attention Network",
        "paper_ids": "arXiv:2202.09741",
        "description": "The authors' weights: pretrained=True where they can be downloaded, else a "
        "file: checkpoint_path=..., or "
        "pretrained=True with pretrained_cfg_overlay=dict(file=...). They were trained with "
        "mean = std = 0.5; the authors' configurations for dense prediction use ImageNet's.",
        **changes,
    }


# The authors' weights of the largest two come from ImageNet-22k.
default_cfgs = generate_default_cfgs(
    with_addresses(
        {
            **{f"van_b{size}.in1k": _cfg() for size in range(5)},
            **{f"van_b{size}.in22k": _cfg() for size in (5, 6)},
        }
    )
)


REPORTED_TOP1 = {
    "van_b0": 75.4,
    "van_b1": 81.1,
    "van_b2": 82.8,
    "van_b3": 83.9,
    "van_b4": 84.2,
}
"""ImageNet-1k top-1 in per cent as the authors report it; nothing measured here."""


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **own: Any) -> nn.Module:
    net: nn.Module = build_model_with_cfg(
        VAN,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3)},
        **{**own, **with_weights(variant, pretrained, kwargs)},
    )
    return net


@register_model
def van_b0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a VAN-B0; keyword arguments are those of :class:`VAN`."""
    own = {"depths": (3, 3, 5, 2), "widths": (32, 64, 160, 256)}
    return _create("van_b0", pretrained, kwargs, **own)


@register_model
def van_b1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a VAN-B1; keyword arguments are those of :class:`VAN`."""
    return _create("van_b1", pretrained, kwargs, depths=(2, 2, 4, 2))


@register_model
def van_b2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a VAN-B2; keyword arguments are those of :class:`VAN`."""
    return _create("van_b2", pretrained, kwargs, depths=(3, 3, 12, 3))


@register_model
def van_b3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a VAN-B3; keyword arguments are those of :class:`VAN`."""
    return _create("van_b3", pretrained, kwargs, depths=(3, 5, 27, 3))


@register_model
def van_b4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a VAN-B4; keyword arguments are those of :class:`VAN`."""
    return _create("van_b4", pretrained, kwargs, depths=(3, 6, 40, 3))


@register_model
def van_b5(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a VAN-B5; keyword arguments are those of :class:`VAN`."""
    own = {"depths": (3, 3, 24, 3), "widths": (96, 192, 480, 768)}
    return _create("van_b5", pretrained, kwargs, **own)


@register_model
def van_b6(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a VAN-B6; keyword arguments are those of :class:`VAN`."""
    own = {"depths": (6, 6, 90, 6), "widths": (96, 192, 384, 768)}
    return _create("van_b6", pretrained, kwargs, **own)
