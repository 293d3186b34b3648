"""The blocks of TransXNet, and their form for inference."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from volution.ops import MSFFN, DepthwiseConv2d, DMixer, PositionTable, depthwise_conv2d
from volution.ops._library import runs_directly
from volution.ops._shared.folding import with_affine_output
from volution.ops._shared.pointwise import add_scaled
from volution.ops.dmixer.norm import scale_and_shift

# One call each in traced graphs, so that symbolic tracing does not stop at their choices.
torch.fx.wrap("add_scaled")
torch.fx.wrap("depthwise_conv2d")
torch.fx.wrap("scale_and_shift")
torch.fx.wrap("join")
torch.fx.wrap("run_layer")


class LayerScale(nn.Module):
    """Scale and shift each channel: what a branch goes through before it joins its shortcut.

    Args:
        dim: Channels ``C``.
        init_value: What the scales start from.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, C, H, W)`` to the same. Where nothing is recorded the input is overwritten.

    The weight has the shape ``(C, 1, 1, 1)`` of the authors' depthwise convolution, which weight
    decay does not pass over.
    """

    def __init__(
        self,
        dim: int,
        init_value: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.init_value = init_value
        self.weight = nn.Parameter(torch.full((dim, 1, 1, 1), init_value, **where))
        self.bias = nn.Parameter(torch.zeros(dim, **where))

    def forward(self, x: Tensor) -> Tensor:
        return scale_and_shift(x, self.weight.flatten(), self.bias)

    def reset_parameters(self) -> None:
        """Set the scales to what they start from, the shifts to zero."""
        nn.init.constant_(self.weight, self.init_value)
        nn.init.zeros_(self.bias)


class Block(nn.Module):
    """Position encoding by a depthwise convolution, dual dynamic mixer, multi-scale network.

    Each has a shortcut; the last two see a map normalised by mean and variance of the whole image,
    and their results go through a :class:`LayerScale`.

    Args:
        dim: Channels of input and output.
        mlp_ratio: Width of the feed-forward network in multiples of ``dim``.
        kernel_size: Of the mixer's dynamic convolution, see :class:`volution.ops.DMixer`.
        num_groups: Kernels that the dynamic convolution mixes.
        num_heads: Heads of the attention.
        sr_ratio: How much smaller the map of the attention's keys is.
        drop_path: Probability of leaving a branch out, in training.
        layer_scale_init_value: What the scales of the branches start from.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, dim, H, W)``, and a :class:`volution.ops.PositionTable` or None, to
        ``(N, dim, H, W)``.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float = 4.0,
        kernel_size: int = 7,
        num_groups: int = 2,
        num_heads: int = 1,
        sr_ratio: int = 1,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.pos_embed = DepthwiseConv2d(dim, 7, **where)
        self.norm1 = nn.GroupNorm(1, dim, **where)
        self.token_mixer = DMixer(dim, kernel_size, num_groups, num_heads, sr_ratio, **where)
        self.norm2 = nn.GroupNorm(1, dim, **where)
        self.mlp = MSFFN(dim, int(dim * mlp_ratio), **where)
        self.layer_scale_1 = LayerScale(dim, layer_scale_init_value, **where)
        self.layer_scale_2 = LayerScale(dim, layer_scale_init_value, **where)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, position: PositionTable | None = None) -> Tensor:
        x = depthwise_conv2d(x, self.pos_embed.weight, self.pos_embed.bias, shortcut=True)
        y = self.layer_scale_1(run_layer(self.token_mixer, self.norm1(x), position))
        x = add_scaled(x, self.drop_path(y), None)
        y = self.layer_scale_2(run_layer(self.mlp, self.norm2(x)))
        return add_scaled(x, self.drop_path(y), None)

    def fuse(self) -> Block | FusedBlock:
        """Return a block that computes the same with fewer passes.

        Raises:
            ValueError: If a norm that would fold is in training mode.
        """
        mixer, mlp = self.token_mixer.fuse(), self.mlp.fuse()
        last = (mixer.proj[-1], mlp.fc2[-1])
        if all(isinstance(norm, nn.Identity) for norm in last):
            return FusedBlock(self, mixer, mlp)
        # Norms of another kind stay, and stand between the scales and what could take them in.
        fused = copy.deepcopy(self)
        fused.token_mixer, fused.mlp = mixer, mlp
        return fused


class FusedBlock(nn.Module):
    """A block of a TransXNet in evaluation: norms and scales folded where they can be.

    The first scale s and shift t meet two summands, the map u of both halves and what the enhancer
    f makes of it: x + s (f(u) + u) + t. They fold into the last convolution of f, which leaves
    x + s u to add.

    Args:
        block: The block to fold; it is left as it is.
        mixer: Its mixer, folded, without a norm at the end.
        mlp: Its feed-forward network, folded, without a norm at the end.

    Shape:
        As :class:`Block`.
    """

    def __init__(self, block: Block, mixer: DMixer, mlp: MSFFN) -> None:
        super().__init__()
        first, second = block.layer_scale_1, block.layer_scale_2
        self.shortcut = nn.Parameter(
            first.weight.detach().flatten().clone(), first.weight.requires_grad
        )
        self.pos_embed = copy.deepcopy(block.pos_embed)
        self.norm1 = copy.deepcopy(block.norm1)
        self.token_mixer = mixer
        _fold_last(mixer.proj, -2, first)
        self.norm2 = copy.deepcopy(block.norm2)
        self.mlp = mlp
        _fold_last(mlp.fc2, 0, second)
        self.train(block.training)

    def forward(self, x: Tensor, position: PositionTable | None = None) -> Tensor:
        x = depthwise_conv2d(x, self.pos_embed.weight, self.pos_embed.bias, shortcut=True)
        mixed = self.token_mixer.mix(self.norm1(x), position)
        x = self.token_mixer.proj.branch(mixed, join(x, mixed, self.shortcut))
        return self.mlp(self.norm2(x), x)  # type: ignore[no-any-return]


def run_layer(layer: nn.Module, *inputs: Any) -> Tensor:
    """Call a layer that takes other ways in training than in evaluation.

    Feature extractors trace a network in both modes, and want the same calls in both.
    """
    return layer(*inputs)  # type: ignore[no-any-return]


def _fold_last(layers: nn.Sequential, index: int, scale: LayerScale) -> None:
    conv = layers[index]
    assert isinstance(conv, nn.Conv2d)
    layers[index] = with_affine_output(conv, scale.weight.flatten(), scale.bias)


def join(x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
    """Return ``x + scale * branch``, over ``x`` where nothing is recorded."""
    if runs_directly(x):
        return torch.addcmul(x, branch, scale[:, None, None], out=x)
    return torch.addcmul(x, branch, scale[:, None, None])
