"""The layers of VAN: blocks, their form for inference, and the authors' names for all of it."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from volution.ops import DepthwiseConv2d, LKAttention, depthwise_conv2d
from volution.ops._shared.folding import (
    batch_norm_affine,
    with_affine_input,
    with_affine_output,
)
from volution.ops._shared.pointwise import add_scaled, images_at_once, pointwise

# One call each in traced graphs, so that symbolic tracing does not stop at their choices.
torch.fx.wrap("add_scaled")
torch.fx.wrap("run_mlp")


class Mlp(nn.Module):
    """Widen the channels, filter each with a 3 by 3 kernel, GELU, narrow them again.

    Args:
        dim: Channels of input and output.
        hidden: Channels between.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, dim, H, W)`` to the same.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.fc1 = nn.Conv2d(dim, hidden, 1, **where)
        self.dwconv = DepthwiseConv2d(hidden, 3, activation="gelu", **where)
        self.fc2 = nn.Conv2d(hidden, dim, 1, **where)
        self.register_load_state_dict_pre_hook(_rename_depthwise)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        layers = (self.fc1, self.dwconv, self.fc2)
        return run_mlp(x, residual, [p for m in layers for p in (m.weight, m.bias)])


def run_mlp(x: Tensor, residual: Tensor | None, parameters: Sequence[Tensor | None]) -> Tensor:
    """Run an :class:`Mlp` with the weights and biases of its layers, on a few images at a time."""
    weight = parameters[0]
    assert weight is not None
    step = images_at_once(x, weight.shape[0])
    if step >= x.shape[0]:
        return _run_mlp(x, residual, *parameters)
    rests = [None] * len(x) if residual is None else residual.split(step)
    pairs = zip(x.split(step), rests, strict=False)
    return torch.cat([_run_mlp(a, b, *parameters) for a, b in pairs])


def _run_mlp(x: Tensor, residual: Tensor | None, *parameters: Any) -> Tensor:
    first, bias, kernel, kernel_bias, last, last_bias = parameters
    x = pointwise(x, first, bias)
    x = depthwise_conv2d(x, kernel, kernel_bias, activation="gelu")
    return pointwise(x, last, last_bias, residual=residual)


class Block(nn.Module):
    """Large-kernel attention and an MLP, each on a normalised map, scaled, beside a shortcut.

    Args:
        dim: Channels of input and output.
        mlp_ratio: Width of the MLP in multiples of ``dim``.
        kernel_size: Of the attention, see :class:`volution.ops.LKA`.
        dilation: Of the attention.
        drop_path: Probability of leaving a branch out, in training.
        layer_scale_init_value: What the scales of the branches start from.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, dim, H, W)`` to the same.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float = 4.0,
        kernel_size: int = 21,
        dilation: int = 3,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 1e-2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), layer_scale_init_value, **where))
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), layer_scale_init_value, **where))
        self.norm1 = nn.BatchNorm2d(dim, **where)
        self.attn = LKAttention(dim, kernel_size, dilation, **where)
        self.norm2 = nn.BatchNorm2d(dim, **where)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **where)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # A scale for each channel commutes with leaving whole branches out.
        x = add_scaled(x, self.drop_path(self.attn(self.norm1(x))), self.layer_scale_1)
        return add_scaled(x, self.drop_path(self.mlp(self.norm2(x))), self.layer_scale_2)

    def fuse(self) -> FusedBlock:
        """Return a block that computes the same without norms and layer scales."""
        return FusedBlock(self)


class FusedBlock(nn.Module):
    """A block of a VAN in evaluation, norms and layer scales folded into its convolutions.

    With the first norm a x + b of each channel, the attention's own shortcut and the block's are
    one: x + s (f(a x + b) + a x + b) = s f(a x + b) + s b + (1 + s a) x.

    Args:
        block: The block to fold, in evaluation mode; it is left as it is.

    Shape:
        ``(N, dim, H, W)`` to the same.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        weight = block.layer_scale_1
        scale, shift = batch_norm_affine(block.norm1)
        outer = weight.detach().double()
        shortcut = (1 + outer * scale).to(weight.dtype)
        self.shortcut = nn.Parameter(shortcut, weight.requires_grad)
        attn, mlp = block.attn, block.mlp
        self.attn = copy.deepcopy(attn)
        self.attn.proj_1 = with_affine_input(attn.proj_1, scale, shift)
        self.attn.proj_2 = with_affine_output(attn.proj_2, outer, outer * shift)
        self.mlp = copy.deepcopy(mlp)
        self.mlp.fc1 = with_affine_input(mlp.fc1, *batch_norm_affine(block.norm2))
        self.mlp.fc2 = with_affine_output(mlp.fc2, block.layer_scale_2)
        self.train(block.training)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn.branch(x, x * self.shortcut[:, None, None])
        return self.mlp(x, x)  # type: ignore[no-any-return]


class Stage(nn.Sequential):
    """``downsample``, the blocks by number, and ``norm``."""

    def __init__(self, layers: OrderedDict[str, nn.Module]) -> None:
        super().__init__(layers)
        # Here too, for feature extractors: they take the stages out of the network.
        self.register_load_state_dict_pre_hook(rename_official)  # type: ignore[no-untyped-call]


def rename_official(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Accept the authors' names, in which a stage's layers are the network's own."""
    base = re.sub(r"stage\d+\.$", "", prefix)
    for key in [key for key in state_dict if key.startswith(base)]:
        name = _own_name(key[len(base) :])
        state_dict[base + name] = state_dict.pop(key)


def _own_name(name: str) -> str:
    """Return our name of a parameter of the authors.

    >>> [_own_name(n) for n in ("patch_embed1.norm.bias", "block4.0.norm1.bias", "norm2.bias")]
    ['stage1.downsample.norm.bias', 'stage4.0.norm1.bias', 'stage2.norm.bias']
    """
    name = re.sub(r"^patch_embed(\d+)\.", r"stage\1.downsample.", name)
    name = re.sub(r"^block(\d+)\.", r"stage\1.", name)
    name = re.sub(r"^norm(\d+)\.", r"stage\1.norm.", name)
    return re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name)


def _rename_depthwise(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    """Accept the authors' names, in which the depthwise convolution is inside another module."""
    theirs = f"{prefix}dwconv.dwconv."
    for key in [key for key in state_dict if key.startswith(theirs)]:
        state_dict[f"{prefix}dwconv.{key[len(theirs) :]}"] = state_dict.pop(key)
