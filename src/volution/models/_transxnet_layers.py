"""What TransXNets are made of: blocks, stages with a table of positions, and the authors' names.

The table is one for all blocks of a stage, so the stage owns it and hands it to each of them.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead, DropPath
from timm.models import checkpoint
from torch import Tensor, nn

from volution.models.official import renames_official
from volution.ops import MSFFN, DepthwiseConv2d, DMixer, PositionTable, depthwise_conv2d
from volution.ops._library import runs_directly
from volution.ops._shared.folding import with_affine_output
from volution.ops._shared.layout import strided
from volution.ops._shared.pointwise import add_scaled

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
        return scale_and_shift(x, self.weight, self.bias)

    def reset_parameters(self) -> None:
        """Set the scales to what they start from, the shifts to zero."""
        nn.init.constant_(self.weight, self.init_value)
        nn.init.zeros_(self.bias)


def scale_and_shift(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a :class:`LayerScale`, over ``x`` where nothing is recorded."""
    scale, shift = weight.reshape(-1, 1, 1), bias[:, None, None]
    if runs_directly(x):
        return torch.addcmul(shift, x, scale, out=x)
    return torch.addcmul(shift, x, scale)


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
    """A block of a TransXNet in evaluation: norms, scales and shortcuts folded where they can be.

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
        with torch.no_grad():
            self.pos_embed.weight[:, :, 3, 3] += 1
        self.norm1 = copy.deepcopy(block.norm1)
        self.token_mixer = mixer
        _fold_last(mixer.proj, -2, first)
        self.norm2 = copy.deepcopy(block.norm2)
        self.mlp = mlp
        _fold_last(mlp.fc2, 0, second)
        self.train(block.training)

    def forward(self, x: Tensor, position: PositionTable | None = None) -> Tensor:
        x = depthwise_conv2d(x, self.pos_embed.weight, self.pos_embed.bias)
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


class StageTable(PositionTable):
    """The table of positions of a stage, which takes over one that is stored for another size.

    The function is then that of the network that was stored, since a table is resized to every
    map that is not of its size. From the numbers of queries and keys the size of the map can be
    told if it was square.
    """

    def __init__(
        self,
        num_heads: int,
        size: tuple[int, int],
        sr_ratio: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_heads, size, sr_ratio, device, dtype)
        # In the place of the base class's, which takes no other size.
        self._load_state_dict_pre_hooks.clear()
        self.register_load_state_dict_pre_hook(_check_table)  # type: ignore[no-untyped-call]

    def fits_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether a stored parameter of this name can be taken over in another shape."""
        return name == "weight" and self._stored_size(shape) is not None

    def _stored_size(self, shape: Sequence[int]) -> tuple[int, int] | None:
        """Return the height and width of the map that a table of this shape is for, if any."""
        if tuple(shape) == tuple(self.weight.shape):
            return self.size
        if len(shape) != 4 or tuple(shape[:2]) != (1, self.num_heads):
            return None
        side = math.isqrt(shape[2])
        fits = side > 0 and shape[2:] == (side**2, strided(side, self.sr_ratio) ** 2)
        return (side, side) if fits else None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(f"{prefix}weight")
        size = None if stored is None else self._stored_size(tuple(stored.shape))
        if stored is not None and size is not None and self.weight.shape != stored.shape:
            # The parameter stays the same object: optimisers may hold it.
            self.weight.data, self.weight.grad = self.weight.data.new_empty(stored.shape), None
            self.size = size
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _check_table(module: StageTable, state: dict[str, Any], prefix: str, *_: object) -> None:
    stored = state.get(f"{prefix}weight")
    if not isinstance(stored, Tensor):
        return
    # Another number of heads is another network: that is told with all its other differences.
    same_heads = stored.dim() == 4 and tuple(stored.shape[:2]) == (1, module.num_heads)
    if same_heads and not module.fits_shape("weight", tuple(stored.shape)):
        raise ValueError(
            f"the stored {prefix}weight is a table of another size: expected the shape "
            f"(1, heads, queries, keys) = {tuple(module.weight.shape)}, or that of a square map "
            f"with its keys reduced by {module.sr_ratio}, got {tuple(stored.shape)}; create the "
            f"network with the image_size=(height, width) that it was stored with"
        )


class Stage(nn.Module):
    """``downsample``, the blocks by number, and ``position``, the table that they share.

    Args:
        downsample: What makes the map smaller.
        position: The table, which is handed to each block.
        blocks: The blocks.

    Shape:
        ``(N, C_in, H, W)`` to ``(N, C_out, H / s, W / s)``.
    """

    def __init__(
        self, downsample: nn.Module, position: PositionTable, blocks: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.position = position
        for i, block in enumerate(blocks):
            self.add_module(str(i), block)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self._blocks():
            x = block(x, self.position)
        return x

    def forward_checkpointed(self, x: Tensor) -> Tensor:
        """Run the stage; what happens inside a layer is computed again in the backward pass."""
        x = checkpoint(self.downsample, x)
        for block in self._blocks():
            x = checkpoint(block, x, self.position)
        return x

    def _blocks(self) -> list[nn.Module]:
        return [child for name, child in self.named_children() if name.isdigit()]


class NormPoolHead(ClassifierHead):
    """timm's ``ClassifierHead`` behind a norm of the whole map.

    Args:
        in_features: Channels of the map.
        num_classes: Classes; 0 leaves the classifier out, not the norm.
        pool_type: Pooling, as in timm.
        drop_rate: Dropout before the classifier.
        device: Where the parameters live.
        dtype: What the parameters are.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, num_classes, pool_type, drop_rate, device=device, dtype=dtype)
        # Registered before the classifier that follows it, so that names keep the running order.
        fc = self.fc
        del self.fc
        self.norm = nn.GroupNorm(1, in_features, device=device, dtype=dtype)
        self.fc = fc

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        logits: Tensor = super().forward(self.norm(x), pre_logits=pre_logits)
        return logits


# Of the copies for detection and segmentation, which normalise each output: no place here.
_OUTPUT_NORM = re.compile(r"norm[0246]\.")


@renames_official
def _rename_official_layers(state_dict: dict[str, Any], prefix: str) -> None:
    """Put the authors' layers in their places here."""
    if f"{prefix}relative_pos_enc.0" not in state_dict:
        return
    for key in [key for key in state_dict if key.startswith(prefix)]:
        value, name = state_dict.pop(key), key[len(prefix) :]
        if name == "classifier.2.weight":
            value = value.flatten(1)
        if not _OUTPUT_NORM.match(name):
            state_dict[prefix + _place(name)] = value


def _place(name: str) -> str:
    """Return our name of a parameter of the authors.

    >>> [_place(name) for name in ("network.1.proj.bn.bias", "network.4.8.norm1.bias")]
    ['stage2.downsample.proj.bn.bias', 'stage3.8.norm1.bias']
    >>> [_place(name) for name in ("relative_pos_enc.3", "classifier.2.bias")]
    ['stage4.position.weight', 'head.fc.bias']
    """
    name = re.sub(r"^patch_embed\.", "stage1.downsample.", name)
    name = re.sub(r"^classifier\.0\.", "head.norm.", name)
    name = re.sub(r"^classifier\.2\.", "head.fc.", name)
    name = re.sub(
        r"^relative_pos_enc\.(\d)$", lambda m: f"stage{int(m[1]) + 1}.position.weight", name
    )
    return re.sub(r"^network\.(\d)\.", lambda m: _stage_place(int(m[1])), name)


def _stage_place(number: int) -> str:
    # Stages have even numbers, what makes the map smaller before the next one odd ones.
    return f"stage{number // 2 + 1}." if number % 2 == 0 else f"stage{number // 2 + 2}.downsample."
