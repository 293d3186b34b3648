"""ResNets in which X-volutions stand for the 3 by 3 convolutions of chosen stages.

Paper: Chen et al., "X-volution: On the Unification of Convolution and Self-attention", 2021,
https://arxiv.org/abs/2106.02253. The authors published neither code nor weights; the networks here
follow the paper's text, on the ResNets of timm and torchvision. What the authors report of such
stages against the plain ResNet, none of it measured here: ImageNet top-1 +1.2 with 34 layers, +0.9
with 50.

The paper calls its best place "stage 3", and its numbering is ambiguous. ``stages`` counts as timm
does: ``stages=(3,)`` is ``layer3``, whose maps are 16 times smaller than the image.

Plain ResNet weights of either library load unchanged and give the ResNet's own function, the
attention being switched off at first; see :func:`volution.models.load_official`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from volution.models._pyramid import Pyramid
from volution.models._resnet_checkpoints import absorb_norms
from volution.models._resnet_layers import BasicBlock, Bottleneck, ConvNorm, residual_stages
from volution.models._stages import check_stages
from volution.models.official import checkpoint_filter_fn
from volution.models.weights import with_weights
from volution.ops import Xvolution2d, _checks
from volution.ops.xvolution.attention import WindowAttention

__all__ = ["XvolutionResNet"]

# What a block makes of its width inside, the stem's width being that of the first stage.
_BLOCKS = {"basic": (BasicBlock, 1), "bottleneck": (Bottleneck, 4)}


class XvolutionResNet(Pyramid):
    """A ResNet whose 3 by 3 convolutions are X-volutions in chosen stages.

    An X-volution is a convolution and a windowed self-attention, each followed by a BatchNorm,
    added up. It takes the place of a 3 by 3 convolution and the BatchNorm after it: the one of a
    bottleneck, both of a basic block.

    Args:
        block: ``"basic"`` (two 3 by 3 convolutions) or ``"bottleneck"`` (1 by 1, 3 by 3, 1 by 1).
        depths: Blocks of each stage.
        widths: Channels of each stage. The stem makes as many as the first stage has inside.
        stages: The stages with X-volutions, from 1 to 4; none for a plain ResNet.
        attention: The second branch: ``"pssa"``, ``"involution"``, ``"sa"`` or a module factory,
            see :class:`volution.ops.Xvolution2d`. ``"sa"`` does not fold.
        kernel_size: Side of the attention's window; the convolutions stay 3 by 3.
        heads: Groups of channels with attention of their own; they divide the channels inside
            the blocks.
        normalize: ``"none"`` or ``"softmax"``, see :func:`volution.ops.pssa2d`; by default the
            paper's ``"none"``, and ``"softmax"`` for ``"sa"``. ``"none"`` is of third degree
            in each layer: images far brighter than those of training can overflow.
        branches: ``"both"``, or ``"conv"`` or ``"attention"`` alone, to tell what each adds.
        num_classes: Classes of the classifier; 0 leaves it out.
        in_chans: Channels of the image.
        global_pool: Pooling before the classifier, as in timm.
        output_stride: 32, 16 or 8: how much smaller the last map is than the image.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Probability of leaving out the last block's branch, in training; it
            rises linearly from 0 at the first block.
        zero_init_last: Let every block start as its shortcut: zero scale in its last norm.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, in_chans, H, W)`` to ``(N, num_classes)``. The taps ``stem`` and ``layer1`` to
        ``layer4`` give maps 2, 4, 8, 16 and 32 times smaller than the image, rounded up.

    Raises:
        ValueError: If a stage does not exist or is named twice, there are not four depths and
            widths, the widths are no multiples of 4 where blocks are bottlenecks, or another
            argument cannot be.

    Example:
        >>> net = XvolutionResNet("basic", (1, 1, 1, 1), (8, 16, 32, 64), heads=4, num_classes=5)
        >>> net(torch.randn(1, 3, 65, 50)).shape
        torch.Size([1, 5])
        >>> type(net.layer3[0].conv1).__name__, type(net.layer4[0].conv1).__name__
        ('Xvolution2d', 'Conv2d')
    """

    def __init__(
        self,
        block: Literal["basic", "bottleneck"] = "bottleneck",
        depths: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (256, 512, 1024, 2048),
        stages: Sequence[int] = (3,),
        attention: str | Callable[..., nn.Module] = "pssa",
        kernel_size: int = 3,
        heads: int = 8,
        normalize: Literal["none", "softmax"] | None = None,
        branches: Literal["both", "conv", "attention"] = "both",
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        zero_init_last: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        _checks.check_one_of("block", block, tuple(_BLOCKS))
        check_stages(depths=depths, widths=widths)
        _check_which(stages)
        kind, expansion = _BLOCKS[block]
        if any(width % expansion for width in widths):
            raise ValueError(
                f"widths must be multiples of {expansion} where blocks are bottlenecks, got "
                f"{tuple(widths)}"
            )
        where: dict[str, Any] = {"device": device, "dtype": dtype}

        def convolution(
            inputs: int, outputs: int, stride: int, dilation: int
        ) -> tuple[nn.Module, nn.Module]:
            sizes = (3, stride, dilation, dilation)
            conv = nn.Conv2d(inputs, outputs, *sizes, bias=False, **where)
            return conv, nn.BatchNorm2d(outputs, **where)

        def xvolution(
            inputs: int, outputs: int, stride: int, dilation: int
        ) -> tuple[nn.Module, nn.Module]:
            layer = Xvolution2d(
                inputs,
                outputs,
                3,
                stride,
                dilation=dilation,
                bias=False,
                heads=heads,
                attention=attention,
                attention_kernel_size=kernel_size,
                normalize=normalize,
                branches=branches,
                **where,
            )
            # Its two norms stand for the one that followed.
            return layer, nn.Identity()

        def make_block(stage: int, **sizes: Any) -> nn.Module:
            made = kind(spatial=xvolution if stage in stages else convolution, **sizes, **where)
            made.register_load_state_dict_pre_hook(absorb_norms)
            return made

        channels = widths[0] // expansion
        stem = nn.Conv2d(in_chans, channels, 7, 2, padding=3, bias=False, **where)
        layers = {"conv1": stem, "bn1": nn.BatchNorm2d(channels, **where), "act1": nn.ReLU(True)}
        self.stem = ConvNorm(OrderedDict(layers))
        self.feature_info = [{"num_chs": channels, "reduction": 2, "module": "stem"}]
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for name, blocks, tap in residual_stages(
            make_block, channels, depths, widths, output_stride, drop_path_rate
        ):
            self.add_module(name, blocks)
            self.feature_info.append(tap)
        self.add_head(global_pool, **where)
        self.init_weights(zero_init_last)

    @torch.no_grad()
    def init_weights(self, zero_init_last: bool = True) -> None:
        """Draw the weights: He's normal in the convolutions, by their outputs, as in ResNets.

        The attention draws its own, where it has a method for it.
        """
        _draw(self)
        for module in self.modules():
            if zero_init_last and isinstance(module, BasicBlock | Bottleneck):
                for norm in _last_norms(module):
                    nn.init.zeros_(cast(Tensor, norm.weight))

    def fuse(self) -> Pyramid:
        """Return a copy that computes the same with fewer layers, for inference.

        As of any network here; every X-volution becomes one convolution with a kernel that is
        each pixel's own in part.

        Raises:
            ValueError: If a norm is in training mode, or an attention is no window.
        """
        layers = [(n, m) for n, m in self.named_modules() if isinstance(m, Xvolution2d)]
        stuck = [n for n, m in layers if not isinstance(m.attention, WindowAttention | None)]
        if stuck:
            more = f" and {len(stuck) - 1} more" if len(stuck) > 1 else ""
            raise ValueError(
                f'fuse() cannot fold {stuck[0]}{more}: only attention in a window folds, not "sa", '
                f"which sees the whole image. What remains: each such layer's fuse_convolution(), "
                f"and stages without them, net.layer1 = timm.utils.reparameterize_model(net.layer1)"
            )
        return super().fuse()

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the patterns by which timm groups parameters: by stage if coarse, or by block."""
        return {"stem": r"^stem", "blocks": r"^layer(\d+)" + ("" if coarse else r"\.(\d+)")}


def _draw(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(module, Xvolution2d) and name == "attention":
            for part in child.modules():
                if callable(draw := getattr(part, "reset_parameters", None)):
                    draw()
        elif isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
        else:
            _draw(child)


def _last_norms(block: BasicBlock | Bottleneck) -> list[nn.Module]:
    """Return the norms whose scales decide what a block's branch gives at the start."""
    if isinstance(block, Bottleneck):
        return [block.bn3]
    layer = block.conv2
    if isinstance(layer, Xvolution2d):
        return [x for x in (layer.conv_norm, layer.attention_norm) if x is not None]
    return [block.bn2]


def _check_which(stages: Sequence[int]) -> None:
    if isinstance(stages, int):
        raise TypeError(f"stages must be a sequence of stages, got {stages}; write ({stages},)")
    if len(set(stages)) < len(stages) or not set(stages) <= {1, 2, 3, 4}:
        raise ValueError(f"stages must be some of 1, 2, 3 and 4, each once, got {tuple(stages)}")


def _cfg(**changes: Any) -> dict[str, Any]:
    return {
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "num_classes": 1000,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "origin_url": "https://arxiv.org/abs/2106.02253",
        "paper_name": "X-volution: On the Unification of Convolution and Self-attention",
        "paper_ids": "arXiv:2106.02253",
        "description": "No weights of this network were ever published; the licence is that of the "
        "code. A plain ResNet's weights, of torchvision or timm, load from a file: "
        "checkpoint_path=..., or pretrained=True with pretrained_cfg_overlay=dict(file=...).",
        **changes,
    }


default_cfgs = generate_default_cfgs(
    {f"xvolution_resnet{depth}.untrained": _cfg() for depth in (34, 50, 101)}
)


REPORTED_TOP1: dict[str, float] = {}
"""Empty: the authors report gains over the ResNets they trained, see above."""


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **own: Any) -> nn.Module:
    net: nn.Module = build_model_with_cfg(
        XvolutionResNet,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3, 4)},
        **{**own, **with_weights(variant, pretrained, kwargs)},
    )
    return net


@register_model
def xvolution_resnet34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make an X-volution ResNet-34; keyword arguments are those of :class:`XvolutionResNet`."""
    own = {"block": "basic", "depths": (3, 4, 6, 3), "widths": (64, 128, 256, 512)}
    return _create("xvolution_resnet34", pretrained, kwargs, **own)


@register_model
def xvolution_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make an X-volution ResNet-50; keyword arguments are those of :class:`XvolutionResNet`."""
    return _create("xvolution_resnet50", pretrained, kwargs, depths=(3, 4, 6, 3))


@register_model
def xvolution_resnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make an X-volution ResNet-101; keyword arguments are those of :class:`XvolutionResNet`."""
    return _create("xvolution_resnet101", pretrained, kwargs, depths=(3, 4, 23, 3))
