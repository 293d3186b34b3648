"""TransXNet: a pyramid of dual dynamic mixers.

Paper: Lou et al., "TransXNet: Learning Both Global and Local Dynamics with a Dual Dynamic Token
Mixer for Visual Recognition", TNNLS 2025, https://arxiv.org/abs/2310.19380. Authors' code and
weights: LMMMEng/TransXNet. What differs from the authors' networks:
- one class serves classification and dense prediction; the norms that their copies for detection
  and segmentation put on each output are not part of it;
- the patch embedding, the blocks and the table of positions of a stage are children of one module;
- no tensor of the size of a resized table lives, see :class:`volution.ops.OSRA`;
- the classifier can be changed.
Their checkpoints load unchanged, see :func:`volution.models.load_official`; a table of positions
that is stored in another size is taken over in that size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from volution.models._head import NormPoolHead
from volution.models._patch_embed import PatchEmbed
from volution.models._pyramid import Pyramid
from volution.models._stages import (
    check_output_stride,
    check_stages,
    drop_path_rates,
    match_stages,
)
from volution.models._transxnet_layers import Block, LayerScale
from volution.models._transxnet_stage import Stage, StageTable
from volution.models.official import checkpoint_filter_fn
from volution.models.weights import with_addresses, with_weights
from volution.ops import IDConv
from volution.ops._shared.layout import strided

__all__ = ["TransXNet"]


class TransXNet(Pyramid):
    """Four stages of dual dynamic mixers: local kernels and attention, both made for the image.

    Args:
        depths: Blocks of each stage.
        widths: Channels of each stage; twice the number of heads divides them.
        num_heads: Heads of the attention of each stage.
        num_groups: Kernels that the dynamic convolutions of each stage mix, at least 2.
        mlp_ratios: Width of the feed-forward networks of each stage, in multiples of its channels.
        sr_ratios: How much smaller than the map the attention's keys are, in each stage; 1 or even.
        num_classes: Classes of the classifier; 0 leaves it out.
        in_chans: Channels of the image.
        global_pool: Pooling before the classifier, as in timm.
        output_stride: 32; the parameter is there for callers that always give it.
        image_size: Side of the images that the tables of positions are made for, or their height
            and width. Images of other sizes run too: the tables are resized for them.
        kernel_size: Of the dynamic convolutions.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Probability of leaving out the last block's branches, in training; it
            rises linearly from 0 at the first block.
        layer_scale_init_value: What the scales of the branches start from.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, in_chans, H, W)`` to ``(N, num_classes)``. The taps ``stage1`` to ``stage4`` give
        maps 4, 8, 16 and 32 times smaller than the image, rounded up. Any size from one pixel.

    Raises:
        ValueError: If ``output_stride`` or ``image_size`` cannot be, there are not four stages,
            or numbers of heads or kernels do not suit; in training, for a batch of one image,
            which the norm of the kernels' generator cannot take.

    Example:
        >>> sizes = {"depths": (1, 1, 1, 1), "widths": (8, 16, 32, 64)}
        >>> net = TransXNet(**sizes, num_classes=5, image_size=64)
        >>> net(torch.randn(2, 3, 65, 50)).shape
        torch.Size([2, 5])
        >>> [tuple(x.shape[1:]) for x in net.forward_intermediates(
        ...     torch.randn(2, 3, 65, 50), indices=[0, 3], intermediates_only=True)]
        [(8, 17, 13), (64, 3, 2)]
    """

    output_strides: ClassVar[tuple[int, ...]] = (32,)
    head_init_std: ClassVar[float] = 0.02

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 9, 3),
        widths: Sequence[int] = (48, 96, 224, 448),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        num_groups: Sequence[int] = (2, 2, 2, 2),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int = 32,
        image_size: int | tuple[int, int] = 224,
        kernel_size: int = 7,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        check_stages(
            depths=depths,
            widths=widths,
            num_heads=num_heads,
            num_groups=num_groups,
            mlp_ratios=mlp_ratios,
            sr_ratios=sr_ratios,
        )
        check_output_stride(output_stride, self.output_strides)
        rows, columns = _sides(image_size)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        channels, reduction = in_chans, 1
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            side, stride = (7, 4) if i == 0 else (3, 2)
            rows, columns, reduction = (
                strided(rows, stride),
                strided(columns, stride),
                reduction * stride,
            )
            stage = Stage(
                PatchEmbed(channels, widths[i], side, stride, bias=False, **where),
                StageTable(num_heads[i], (rows, columns), sr_ratios[i], **where),
                [
                    Block(
                        widths[i],
                        mlp_ratios[i],
                        kernel_size,
                        num_groups[i],
                        num_heads[i],
                        sr_ratios[i],
                        rate,
                        layer_scale_init_value,
                        **where,
                    )
                    for rate in rates
                ],
            )
            channels, name = widths[i], f"stage{i + 1}"
            self.add_module(name, stage)
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": name})
        self.add_head(global_pool, **where)
        self.init_weights()

    def make_head(
        self,
        global_pool: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> ClassifierHead:
        """Make a head with a norm of the map before its pooling."""
        return NormPoolHead(
            self.num_features,
            self.num_classes,
            pool_type=global_pool,
            drop_rate=self.drop_rate,
            device=device,
            dtype=dtype,
        )

    def init_weights(self) -> None:
        """Draw the weights as the authors do: truncated normal, standard deviation 0.02."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm | IDConv | LayerScale):
                module.reset_parameters()
            elif isinstance(module, StageTable):
                nn.init.zeros_(module.weight)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resize the tables of positions for images of another side, or height and width.

        What the network makes of such images stays the same; it then learns at their resolution.
        """
        rows, columns = _sides(img_size)
        for i, tap in enumerate(self.feature_info):
            stride = 4 if i == 0 else 2
            rows, columns = strided(rows, stride), strided(columns, stride)
            stage = getattr(self, tap["module"])
            if isinstance(stage, Stage):
                cast(StageTable, stage.position).resize((rows, columns))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns by which timm groups parameters: by stage if coarse, or by block."""
        return match_stages(coarse)


def _sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width.

    >>> _sides(0)
    Traceback (most recent call last):
    ValueError: image_size must be a side of at least 1, or a height and a width, got 0
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(
            f"image_size must be a side of at least 1, or a height and a width, got {image_size!r}"
        )
    return sides


def _cfg(size: int = 224, **changes: Any) -> dict[str, Any]:
    return {
        "input_size": (3, size, size),
        "pool_size": (size // 32, size // 32),
        "num_classes": 1000,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "first_conv": "stage1.downsample.proj",
        "classifier": "head.fc",
        # Their README states none.
        "license": "unknown",  # their repository states none
        "origin_url": "https://github.com/LMMMEng/TransXNet",
        "paper_name": "TransXNet: Learning Both Global and Local Dynamics with a Dual Dynamic "
        "Token Mixer for Visual Recognition",
        "paper_ids": "arXiv:2310.19380",
        "description": "The authors' weights: pretrained=True where they can be downloaded, else a "
        "file: checkpoint_path=..., or "
        "pretrained=True with pretrained_cfg_overlay=dict(file=...).",
        **changes,
    }


# At 384 pixels the authors resize the tables of 224; image_size=384 makes tables of that size.
default_cfgs = generate_default_cfgs(
    with_addresses(
        {
            "transxnet_t.in1k": _cfg(),
            "transxnet_s.in1k": _cfg(),
            "transxnet_b.in1k": _cfg(crop_pct=0.95),
            "transxnet_b.in1k_384": _cfg(384, crop_pct=0.95),
        }
    )
)


REPORTED_TOP1 = {"transxnet_t": 81.6, "transxnet_s": 83.8, "transxnet_b": 84.6}
"""ImageNet-1k top-1 in per cent as the authors report it; nothing measured here."""


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **own: Any) -> nn.Module:
    net: nn.Module = build_model_with_cfg(
        TransXNet,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3)},
        **{**own, **with_weights(variant, pretrained, kwargs)},
    )
    return net


@register_model
def transxnet_t(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a TransXNet-T; keyword arguments are those of :class:`TransXNet`."""
    return _create("transxnet_t", pretrained, kwargs)


@register_model
def transxnet_s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a TransXNet-S; keyword arguments are those of :class:`TransXNet`."""
    own = {
        "depths": (4, 4, 12, 4),
        "widths": (64, 128, 320, 512),
        "num_heads": (1, 2, 5, 8),
        "num_groups": (2, 2, 3, 4),
        "mlp_ratios": (6, 6, 4, 4),
    }
    return _create("transxnet_s", pretrained, kwargs, **own)


@register_model
def transxnet_b(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a TransXNet-B; keyword arguments are those of :class:`TransXNet`."""
    own = {
        "depths": (4, 4, 21, 4),
        "widths": (76, 152, 336, 672),
        "num_heads": (2, 4, 8, 16),
        "num_groups": (2, 2, 4, 4),
        "mlp_ratios": (8, 8, 4, 4),
    }
    return _create("transxnet_b", pretrained, kwargs, **own)
