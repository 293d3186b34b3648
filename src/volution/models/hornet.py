"""HorNet: a pyramid of recursive gated convolutions.

Paper: Rao et al., "HorNet: Efficient High-Order Spatial Interactions with Recursive Gated
Convolutions", NeurIPS 2022, https://arxiv.org/abs/2207.14284. Authors' code and weights:
raoyongming/HorNet, MIT. What differs from the authors' networks:
- one class serves classification and dense prediction; the norms that their copies for detection
  and segmentation put on each output are not part of it;
- the downsampling and the blocks of a stage are children of one module;
- orders, filters and filter sizes are arguments, for each stage;
- they run in half precision as a whole, without overflow, see :class:`volution.ops.GnConv`.
Their checkpoints load unchanged, see :func:`volution.models.load_official`; a global filter that
is stored in another size is taken over in that size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from volution.models._head import NormClassifierHead
from volution.models._hornet_layers import Block, Filter, downsample
from volution.models._pyramid import Pyramid
from volution.models._stages import (
    check_output_stride,
    check_stages,
    drop_path_rates,
    match_stages,
)
from volution.models.official import checkpoint_filter_fn
from volution.models.weights import with_addresses, with_weights
from volution.ops import GlobalLocalFilter

__all__ = ["Block", "HorNet"]


class HorNet(Pyramid):
    """Four stages of gated convolutions, of an order that grows with the stage.

    Args:
        depths: Blocks of each stage.
        widths: Channels of each stage; ``2 ** (order - 1)`` divides them, ``2 ** order`` where
            the filter is global-local.
        orders: Order of the gated convolutions of each stage.
        filters: Filter of the gated convolutions of each stage: ``"depthwise"``,
            ``"global_local"`` or a function that makes one, see :class:`volution.ops.GnConv`.
        filter_sizes: ``(h, w)`` of each stage's global-local filters: height and half-spectrum
            width of the maps that the stage is trained on; unused by other filters.
        num_classes: Classes of the classifier; 0 leaves it out.
        in_chans: Channels of the image.
        global_pool: Pooling before the classifier, as in timm.
        output_stride: Only 32: a stage without stride would be another network.
        kernel_size: Of the depthwise filters.
        scale: Number that the gates are multiplied with.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Probability of leaving out the last block's branches, in training; it
            rises linearly from 0 at the first block.
        layer_scale_init_value: What the scales of the branches start from; 0 leaves them out.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, in_chans, H, W)`` to ``(N, num_classes)``, with ``H`` and ``W`` at least 32. The
        taps ``stage1`` to ``stage4`` give maps 4, 8, 16 and 32 times smaller than the image,
        rounded down.

    Raises:
        ValueError: If ``output_stride`` is another, a list has no four numbers, or a width does
            not suit its order; when run, if an image is too small.

    Example:
        >>> net = HorNet(depths=(1, 1, 1, 1), widths=(16, 32, 64, 128), num_classes=5)
        >>> net(torch.randn(1, 3, 65, 50)).shape
        torch.Size([1, 5])
        >>> [tuple(x.shape[1:]) for x in net.forward_intermediates(
        ...     torch.randn(1, 3, 65, 50), indices=[0, 3], intermediates_only=True)]
        [(16, 16, 12), (128, 2, 1)]
    """

    output_strides: ClassVar[tuple[int, ...]] = (32,)
    rounds_up: ClassVar[bool] = False
    smallest_image: ClassVar[int] = 32
    head_init_std: ClassVar[float] = 0.02

    def __init__(
        self,
        depths: Sequence[int] = (2, 3, 18, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
        orders: Sequence[int] = (2, 3, 4, 5),
        filters: Sequence[Filter] = ("depthwise",) * 4,
        filter_sizes: Sequence[Sequence[int]] = ((56, 29), (28, 15), (14, 8), (7, 4)),
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int = 32,
        kernel_size: int = 7,
        scale: float = 1 / 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        check_output_stride(output_stride, self.output_strides)
        check_stages(
            depths=depths, widths=widths, orders=orders, filters=filters, filter_sizes=filter_sizes
        )
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        channels, rates = in_chans, drop_path_rates(drop_path_rate, depths)
        for i, width in enumerate(widths):
            stage: OrderedDict[str, nn.Module] = OrderedDict()
            stage["downsample"] = downsample(channels, width, i == 0, where)
            rows, columns = filter_sizes[i]
            for block, rate in enumerate(rates[i]):
                stage[str(block)] = Block(
                    width,
                    orders[i],
                    filters[i],
                    (rows, columns),
                    kernel_size,
                    scale,
                    rate,
                    layer_scale_init_value,
                    **where,
                )
            channels, name = width, f"stage{i + 1}"
            self.add_module(name, nn.Sequential(stage))
            self.feature_info.append({"num_chs": width, "reduction": 4 * 2**i, "module": name})
        self.add_head(global_pool, **where)
        self.init_weights()

    def make_head(
        self,
        global_pool: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> ClassifierHead:
        """Make a head with a norm between pooling and classifier."""
        return NormClassifierHead(
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
            elif isinstance(module, nn.LayerNorm | GlobalLocalFilter):
                module.reset_parameters()
            elif isinstance(module, Block):
                for gamma in (module.gamma1, module.gamma2):
                    if gamma is not None:
                        nn.init.constant_(gamma, module.layer_scale_init_value)

    def no_weight_decay(self) -> set[str]:
        """Return the scales of branches, and the global filters' weights."""
        spared = ("gamma1", "gamma2", "complex_weight")
        return {name for name, _ in self.named_parameters() if name.endswith(spared)}

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resize the global filters for images of another side, or height and width.

        What the network makes of such images stays the same; it then learns at their resolution.

        Raises:
            ValueError: If the images are too small.
        """
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if min(height, width) < self.smallest_image:
            raise ValueError(
                f"img_size must be at least {self.smallest_image}, got {(height, width)}"
            )
        for tap in self.feature_info:
            rows, columns = height // tap["reduction"], width // tap["reduction"]
            for module in getattr(self, tap["module"]).modules():
                if isinstance(module, GlobalLocalFilter):
                    module.resize(rows, columns // 2 + 1)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns by which timm groups parameters: by stage if coarse, or by block."""
        return match_stages(coarse)


def _cfg(size: int = 224, **changes: Any) -> dict[str, Any]:
    return {
        "input_size": (3, size, size),
        "pool_size": (size // 32, size // 32),
        "num_classes": 1000,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "crop_pct": 0.875 if size == 224 else 1.0,
        "interpolation": "bicubic",
        "first_conv": "stage1.downsample.0",
        "classifier": "head.fc",
        "license": "mit",
        "origin_url": "https://github.com/raoyongming/HorNet",
        "paper_name": "HorNet: Efficient High-Order Spatial Interactions with Recursive Gated "
        "Convolutions",
        "paper_ids": "arXiv:2207.14284",
        "description": "The authors' weights: pretrained=True where they can be downloaded, else a "
        "file: checkpoint_path=..., or "
        "pretrained=True with pretrained_cfg_overlay=dict(file=...).",
        **changes,
    }


# The authors trained the large networks on ImageNet-22k, with 10,450 classes. Unless asked for
# by their tag, these come without weights and with the classes of the others: timm's star, which
# counts only after the tags that have weights.
default_cfgs = generate_default_cfgs(
    with_addresses(
        {
            "hornet_tiny_7x7.in1k": _cfg(),
            "hornet_tiny_gf.in1k": _cfg(),
            "hornet_small_7x7.in1k": _cfg(),
            "hornet_small_gf.in1k": _cfg(),
            "hornet_base_7x7.in1k": _cfg(),
            "hornet_base_gf.in1k": _cfg(),
            "hornet_base_gf_img384.in1k": _cfg(384),
            "hornet_large_7x7.in22k": _cfg(num_classes=10450),
            "hornet_large_7x7.untrained*": _cfg(),
            "hornet_large_gf.in22k": _cfg(num_classes=10450),
            "hornet_large_gf.untrained*": _cfg(),
            "hornet_large_gf_img384.in22k": _cfg(384, num_classes=10450),
            "hornet_large_gf_img384.untrained*": _cfg(384),
        }
    )
)


REPORTED_TOP1 = {
    "hornet_tiny_7x7": 82.8,
    "hornet_tiny_gf": 83.0,
    "hornet_small_7x7": 83.8,
    "hornet_small_gf": 84.0,
    "hornet_base_7x7": 84.2,
    "hornet_base_gf": 84.3,
}
"""ImageNet-1k top-1 in per cent as the authors report it; nothing measured here."""


def _create(
    variant: str, pretrained: bool, kwargs: dict[str, Any], base: int, size: int = 224
) -> nn.Module:
    own: dict[str, Any] = {"widths": [base * 2**i for i in range(4)]}
    if "_gf" in variant:
        own["filters"] = ("depthwise", "depthwise", "global_local", "global_local")
        sides = [size // (4 * 2**i) for i in range(4)]
        own["filter_sizes"] = [(side, side // 2 + 1) for side in sides]
    net: nn.Module = build_model_with_cfg(
        HorNet,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3)},
        **{**own, **with_weights(variant, pretrained, kwargs)},
    )
    return net


@register_model
def hornet_tiny_7x7(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a HorNet-Tiny with 7 by 7 kernels; keyword arguments are those of :class:`HorNet`."""
    return _create("hornet_tiny_7x7", pretrained, kwargs, 64)


@register_model
def hornet_tiny_gf(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a HorNet-Tiny with global-local filters in its last two stages."""
    return _create("hornet_tiny_gf", pretrained, kwargs, 64)


@register_model
def hornet_small_7x7(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a HorNet-Small with 7 by 7 kernels; keyword arguments are those of :class:`HorNet`."""
    return _create("hornet_small_7x7", pretrained, kwargs, 96)


@register_model
def hornet_small_gf(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a HorNet-Small with global-local filters in its last two stages."""
    return _create("hornet_small_gf", pretrained, kwargs, 96)


@register_model
def hornet_base_7x7(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a HorNet-Base with 7 by 7 kernels; keyword arguments are those of :class:`HorNet`."""
    return _create("hornet_base_7x7", pretrained, kwargs, 128)


@register_model
def hornet_base_gf(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a HorNet-Base with global-local filters in its last two stages."""
    return _create("hornet_base_gf", pretrained, kwargs, 128)


@register_model
def hornet_base_gf_img384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a HorNet-Base with global-local filters for 384 by 384 pixels."""
    return _create("hornet_base_gf_img384", pretrained, kwargs, 128, 384)


@register_model
def hornet_large_7x7(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a HorNet-Large with 7 by 7 kernels; keyword arguments are those of :class:`HorNet`."""
    return _create("hornet_large_7x7", pretrained, kwargs, 192)


@register_model
def hornet_large_gf(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a HorNet-Large with global-local filters in its last two stages."""
    return _create("hornet_large_gf", pretrained, kwargs, 192)


@register_model
def hornet_large_gf_img384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a HorNet-Large with global-local filters for 384 by 384 pixels."""
    return _create("hornet_large_gf_img384", pretrained, kwargs, 192, 384)
