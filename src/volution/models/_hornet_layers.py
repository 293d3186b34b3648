"""What HorNets are made of: blocks, downsampling, and their places in the authors' networks."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d
from torch import Tensor, nn

from volution.models.official import renames_official
from volution.ops import GnConv
from volution.ops._shared.folding import with_affine_output
from volution.ops._shared.pointwise import add_scaled, pointwise

# One call in traced graphs, so that symbolic tracing does not stop at its choices.
torch.fx.wrap("add_scaled")
torch.fx.wrap("pointwise")

Filter = str | Callable[[int], nn.Module]


class Block(nn.Module):
    """Recursive gated convolution and an MLP, each on a normalised map, scaled, beside a shortcut.

    Args:
        dim: Channels of input and output.
        order: Of the gated convolution, see :class:`volution.ops.GnConv`.
        filter: Of the gated convolution.
        filter_size: ``(h, w)`` of a global-local filter.
        kernel_size: Of a depthwise filter.
        scale: Number that the gates are multiplied with.
        drop_path: Probability of leaving a branch out, in training.
        layer_scale_init_value: What the scales of the branches start from; 0 leaves them out.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, dim, H, W)`` to the same.
    """

    def __init__(
        self,
        dim: int,
        order: int = 5,
        filter: Filter = "depthwise",
        filter_size: tuple[int, int] = (14, 8),
        kernel_size: int = 7,
        scale: float = 1 / 3,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.layer_scale_init_value = layer_scale_init_value
        self.gamma1 = self.gamma2 = None
        if layer_scale_init_value:
            self.gamma1 = nn.Parameter(torch.full((dim,), layer_scale_init_value, **where))
            self.gamma2 = nn.Parameter(torch.full((dim,), layer_scale_init_value, **where))
        self.norm1 = LayerNorm2d(dim, **where)
        self.gnconv = GnConv(
            dim,
            order,
            filter=filter,
            kernel_size=kernel_size,
            filter_size=filter_size,
            scale=scale,
            **where,
        )
        self.norm2 = LayerNorm2d(dim, **where)
        self.pwconv1 = nn.Linear(dim, 4 * dim, **where)
        self.pwconv2 = nn.Linear(4 * dim, dim, **where)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = add_scaled(x, self.drop_path(self.gnconv(self.norm1(x))), self.gamma1)
        y = self.norm2(x)
        y = pointwise(y, self.pwconv1.weight, self.pwconv1.bias, activation="gelu")
        if self.gamma2 is None and isinstance(self.drop_path, nn.Identity):
            return pointwise(y, self.pwconv2.weight, self.pwconv2.bias, residual=x)
        y = pointwise(y, self.pwconv2.weight, self.pwconv2.bias)
        # A scale for each channel commutes with leaving whole branches out.
        return add_scaled(x, self.drop_path(y), self.gamma2)

    def fuse(self) -> Block:
        """Return a copy that computes the same without scales of its own."""
        fused = copy.deepcopy(self)
        gamma1, gamma2 = self.gamma1, self.gamma2
        fused.gnconv = self.gnconv.fuse(gamma1)
        if gamma2 is not None:
            fused.pwconv2 = with_affine_output(self.pwconv2, gamma2)
        fused.gamma1 = fused.gamma2 = None
        return fused


def downsample(
    in_channels: int, out_channels: int, first: bool, where: dict[str, Any]
) -> nn.Sequential:
    """Make what opens a stage; the numbers of its layers are those of the authors' checkpoints."""
    if first:
        stem = nn.Conv2d(in_channels, out_channels, 4, 4, **where)
        return nn.Sequential(stem, LayerNorm2d(out_channels, **where))
    conv = nn.Conv2d(in_channels, out_channels, 2, 2, **where)
    return nn.Sequential(LayerNorm2d(in_channels, **where), conv)


# Where the authors count stages from 0, "{}" stands for the number counted from 1.
_PLACES = (
    (r"downsample_layers\.(\d)\.", "stage{}.downsample."),
    (r"stages\.(\d)\.", "stage{}."),
    (r"norm\.", "head.norm."),
    (r"head\.(?=weight|bias)", "head.fc."),
)
# Of the copies for detection and segmentation, which normalise each output: no place here.
_OUTPUT_NORM = re.compile(r"norm[0-3]\.")


@renames_official
def _rename_official_layers(state_dict: dict[str, Any], prefix: str) -> None:
    """Put the authors' layers in their places here."""
    if f"{prefix}stages.0.0.gnconv.proj_in.weight" not in state_dict:
        return
    for key in [key for key in state_dict if key.startswith(prefix)]:
        value, name = state_dict.pop(key), key[len(prefix) :]
        if not _OUTPUT_NORM.match(name):
            state_dict[prefix + _place(name)] = value


def _place(name: str) -> str:
    for pattern, place in _PLACES:
        match = re.match(pattern, name)
        if match:
            number = int(match[1]) + 1 if match.lastindex else ""
            return place.format(number) + name[match.end() :]
    return name
