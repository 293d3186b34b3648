"""The strided convolution between the stages of VAN and TransXNet."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from volution.ops._shared.folding import fold_child_norm


class PatchEmbed(nn.Module):
    """A strided convolution that makes the map smaller, and its norm.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel, odd.
        stride: Step between output pixels.
        bias: Whether the convolution has one, before the norm.
        device: Where the parameters live.
        dtype: What the parameters are.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.

    Checkpoints in which the two layers are ``proj.conv`` and ``proj.bn`` load too.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        padding = kernel_size // 2
        self.proj = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, bias=bias, **where
        )
        self.norm = nn.BatchNorm2d(out_channels, **where)
        self.register_load_state_dict_pre_hook(_rename_layers)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))  # type: ignore[no-any-return]

    def fuse(self) -> PatchEmbed:
        """Return a copy whose norm is folded into its convolution."""
        fused = copy.deepcopy(self)
        fold_child_norm(fused, "proj", "norm")
        return fused


def _rename_layers(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Accept the names that TransXNet's authors have, whose convolution and norm are one module."""
    for theirs, ours in (("proj.conv.", "proj."), ("proj.bn.", "norm.")):
        for key in [key for key in state_dict if key.startswith(prefix + theirs)]:
            state_dict[prefix + ours + key[len(prefix + theirs) :]] = state_dict.pop(key)
