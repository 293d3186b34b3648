"""VAN as its authors formulate it, from PyTorch's own layers; names are those of their weights.

Paper: Guo et al., "Visual Attention Network", 2022, https://arxiv.org/abs/2202.09741. Without
dropout and stochastic depth, and without the copies that the authors make of tensors which they
then only read. The map after a stage's norm is put back into the memory format it came in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["PlainLKA", "PlainVAN"]


class PlainLKA(nn.Module):
    """Two depthwise convolutions and a 1 by 1 one, whose result multiplies their input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv_spatial = nn.Conv2d(dim, dim, 7, padding=9, dilation=3, groups=dim)
        self.conv1 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv1(self.conv_spatial(self.conv0(x)))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(dim, dim, 1)
        self.activation = nn.GELU()
        self.spatial_gating_unit = PlainLKA(dim)
        self.proj_2 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.spatial_gating_unit(self.activation(self.proj_1(x)))
        return x + self.proj_2(inner)  # type: ignore[no-any-return]


class _Depthwise(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.dwconv(x)  # type: ignore[no-any-return]


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.dwconv = _Depthwise(hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.dwconv(self.fc1(x))))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = _Attention(dim)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = _Mlp(dim, ratio * dim)
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), 1e-2))
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), 1e-2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale_1[:, None, None] * self.attn(self.norm1(x))
        inner = self.mlp(self.norm2(x))
        return x + self.layer_scale_2[:, None, None] * inner  # type: ignore[no-any-return]


class _PatchEmbed(nn.Module):
    def __init__(self, in_channels: int, dim: int, side: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, side, stride, side // 2)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))  # type: ignore[no-any-return]


class PlainVAN(nn.Module):
    """VAN for classification; the arguments are those of van_b2."""

    def __init__(
        self,
        num_classes: int = 1000,
        dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 3, 12, 3),
        ratios: Sequence[int] = (8, 8, 4, 4),
    ) -> None:
        super().__init__()
        before = 3
        for i, (dim, depth, ratio) in enumerate(zip(dims, depths, ratios, strict=True), 1):
            side, stride = (7, 4) if i == 1 else (3, 2)
            self.add_module(f"patch_embed{i}", _PatchEmbed(before, dim, side, stride))
            self.add_module(f"block{i}", nn.ModuleList(_Block(dim, ratio) for _ in range(depth)))
            self.add_module(f"norm{i}", nn.LayerNorm(dim, eps=1e-6))
            before = dim
        self.head = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, 5):
            x = self.get_submodule(f"patch_embed{i}")(x)
            for block in self.get_submodule(f"block{i}").children():
                x = block(x)
            normed = self.get_submodule(f"norm{i}")(x.permute(0, 2, 3, 1))
            if i < 4:
                x = _from_channels_last(normed, like=x)
        return self.head(normed.mean((1, 2)))  # type: ignore[no-any-return]


def _from_channels_last(x: Tensor, like: Tensor) -> Tensor:
    """Return an ``(N, H, W, C)`` map as ``(N, C, H, W)``, in the memory format of ``like``."""
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    return x.permute(0, 3, 1, 2).contiguous(memory_format=layout)
