"""TransXNet as its authors formulate it, in PyTorch's own layers, with the names of their weights.

Paper: Lou et al., "TransXNet: Learning Both Global and Local Dynamics with a Dual Dynamic Token
Mixer for Visual Recognition", TNNLS 2025, https://arxiv.org/abs/2310.19380. Without dropout and
stochastic depth. The attention matrix is written out, its position table is resized in each block,
and the images of a batch become groups of one convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "PlainBlock",
    "PlainDMixer",
    "PlainIDConv",
    "PlainMSFFN",
    "PlainOSRA",
    "PlainTransXNet",
    "grouped_conv2d",
]


def grouped_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Filter each image and channel with a kernel of its own: one convolution of N * C groups.

    Args:
        x: Shape ``(N, C, H, W)``.
        weight: Shape ``(N, C, K, K)``.
        bias: Shape ``(N, C)``.
    """
    n, c, h, w = x.shape
    side = weight.shape[-1]
    y = F.conv2d(
        x.reshape(1, n * c, h, w),
        weight.reshape(n * c, 1, side, side),
        None if bias is None else bias.reshape(n * c),
        padding=side // 2,
        groups=n * c,
    )
    return y.reshape(n, c, h, w)


class _ConvNorm(nn.Module):
    """A convolution, BatchNorm and, where wanted, GELU."""

    def __init__(
        self, channels: int, out: int, side: int, stride: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, side, stride, side // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.activate = nn.GELU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.bn(self.conv(x)))  # type: ignore[no-any-return]


class PlainIDConv(nn.Module):
    """A depthwise convolution whose kernels are mixed anew for each image."""

    def __init__(
        self, dim: int, kernel_size: int = 7, groups: int = 2, ratio: int = 4, bias: bool = True
    ) -> None:
        super().__init__()
        self.side, self.groups = kernel_size, groups
        self.weight = nn.Parameter(0.02 * torch.randn(groups, dim, kernel_size, kernel_size))
        self.bias = nn.Parameter(0.02 * torch.randn(groups, dim)) if bias else None
        narrow = dim // ratio
        self.proj = nn.Sequential(_ConvNorm(dim, narrow, 1), nn.Conv2d(narrow, groups * dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        kernel = (self._shares(F.adaptive_avg_pool2d(x, self.side)) * self.weight).sum(1)
        bias = None
        if self.bias is not None:
            shares = self._shares(x.mean((2, 3), keepdim=True))[..., 0, 0]
            bias = (shares * self.bias).sum(1)
        return grouped_conv2d(x, kernel, bias)

    def _shares(self, pooled: Tensor) -> Tensor:
        return self.proj(pooled).unflatten(1, (self.groups, -1)).softmax(1)  # type: ignore[no-any-return]


class PlainOSRA(nn.Module):
    """Attention of each pixel to the pixels of a smaller map, with a table of positions."""

    def __init__(self, dim: int, num_heads: int = 1, sr_ratio: int = 1) -> None:
        super().__init__()
        self.heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.q = nn.Conv2d(dim, dim, 1)
        self.kv = nn.Conv2d(dim, 2 * dim, 1)
        self.sr = nn.Sequential()
        if sr_ratio > 1:
            self.sr.append(_ConvNorm(dim, dim, sr_ratio + 3, sr_ratio, groups=dim))
            self.sr.append(_ConvNorm(dim, dim, 1, groups=dim, act=False))
        self.local_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        n, c, h, w = x.shape
        small = self.sr(x)
        small = self.local_conv(small) + small
        queries = self.q(x).reshape(n, self.heads, c // self.heads, h * w).transpose(2, 3)
        keys, values = (
            part.reshape(n, self.heads, c // self.heads, -1) for part in self.kv(small).chunk(2, 1)
        )
        attention = (self.scale * queries) @ keys  # N heads H*W M
        if table is not None:
            if table.shape[2:] != attention.shape[2:]:
                table = F.interpolate(table, attention.shape[2:], mode="bicubic")
            attention = attention + table
        mixed = attention.softmax(-1) @ values.transpose(2, 3)
        return mixed.transpose(2, 3).reshape(n, c, h, w)  # type: ignore[no-any-return]


class PlainDMixer(nn.Module):
    """Half of the channels to IDConv, half to OSRA, and the squeezed token enhancer."""

    def __init__(
        self,
        dim: int,
        kernel_size: int = 7,
        num_groups: int = 2,
        num_heads: int = 1,
        sr_ratio: int = 1,
    ) -> None:
        super().__init__()
        narrow = max(16, dim // 8)
        self.local_unit = PlainIDConv(dim // 2, kernel_size, num_groups)
        self.global_unit = PlainOSRA(dim // 2, num_heads, sr_ratio)
        self.proj = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.GELU(),
            nn.BatchNorm2d(dim),
            nn.Conv2d(dim, narrow, 1),
            nn.GELU(),
            nn.BatchNorm2d(narrow),
            nn.Conv2d(narrow, dim, 1),
            nn.BatchNorm2d(dim),
        )

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        local, distant = x.chunk(2, 1)
        x = torch.cat([self.local_unit(local), self.global_unit(distant, table)], 1)
        return self.proj(x) + x  # type: ignore[no-any-return]


class _MultiScale(nn.Module):
    """Four depthwise convolutions on four parts of the channels, plus their input."""

    def __init__(self, dim: int, sides: Sequence[int] = (1, 3, 5, 7)) -> None:
        super().__init__()
        quarter = dim // len(sides)
        # The first part takes what is left over.
        self.parts = [dim - quarter * (len(sides) - 1)] + [quarter] * (len(sides) - 1)
        self.proj = nn.ModuleList(
            nn.Conv2d(part, part, side, padding=side // 2, groups=part)
            for part, side in zip(self.parts, sides, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.parts, 1)
        return torch.cat([conv(part) for conv, part in zip(self.proj, parts, strict=True)], 1) + x


class PlainMSFFN(nn.Module):
    """Widen, filter at four scales, narrow; the activation stands before each norm."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Sequential(
            nn.Conv2d(dim, hidden, 1, bias=False), nn.GELU(), nn.BatchNorm2d(hidden)
        )
        self.dwconv = _MultiScale(hidden)
        self.act = nn.GELU()
        self.norm = nn.BatchNorm2d(hidden)
        self.fc2 = nn.Sequential(nn.Conv2d(hidden, dim, 1, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.dwconv(self.fc1(x))
        return self.fc2(self.norm(self.act(x)))  # type: ignore[no-any-return]


class _LayerScale(nn.Module):
    """A weight and a bias for each channel, as the authors have it: a depthwise convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim, 1, 1, 1), 1e-5))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, groups=x.shape[1])


class PlainBlock(nn.Module):
    """Position encoding by a depthwise convolution, D-Mixer and MS-FFN, each with a shortcut."""

    def __init__(
        self, dim: int, num_heads: int, sr_ratio: int, num_groups: int = 2, mlp_ratio: int = 4
    ) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm1 = nn.GroupNorm(1, dim)
        self.token_mixer = PlainDMixer(dim, 7, num_groups, num_heads, sr_ratio)
        self.norm2 = nn.GroupNorm(1, dim)
        self.mlp = PlainMSFFN(dim, mlp_ratio * dim)
        self.layer_scale_1 = _LayerScale(dim)
        self.layer_scale_2 = _LayerScale(dim)

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        x = x + self.pos_embed(x)
        x = x + self.layer_scale_1(self.token_mixer(self.norm1(x), table))
        return x + self.layer_scale_2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class _PatchEmbed(nn.Module):
    def __init__(self, channels: int, dim: int, side: int, stride: int) -> None:
        super().__init__()
        self.proj = _ConvNorm(channels, dim, side, stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)  # type: ignore[no-any-return]


class PlainTransXNet(nn.Module):
    """TransXNet for classification; the arguments are those of transxnet_t."""

    def __init__(
        self,
        num_classes: int = 1000,
        dims: Sequence[int] = (48, 96, 224, 448),
        depths: Sequence[int] = (3, 3, 9, 3),
        heads: Sequence[int] = (1, 2, 4, 8),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        image_size: int = 224,
    ) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed(3, dims[0], 7, 4)
        self.relative_pos_enc = nn.ParameterList()
        self.network = nn.ModuleList()
        side = -(-image_size // 4)
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            if i:
                self.network.append(_PatchEmbed(dims[i - 1], dim, 3, 2))
                side = -(-side // 2)
            keys = -(-side // sr_ratios[i])
            self.relative_pos_enc.append(torch.zeros(1, heads[i], side**2, keys**2))
            blocks = (PlainBlock(dim, heads[i], sr_ratios[i]) for _ in range(depth))
            self.network.append(nn.ModuleList(blocks))
        self.classifier = nn.Sequential(
            nn.GroupNorm(1, dims[-1]),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(dims[-1], num_classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for i, table in enumerate(self.relative_pos_enc):
            if i:
                x = self.network[2 * i - 1](x)
            for block in self.network[2 * i].children():
                x = block(x, table)
        return self.classifier(x).flatten(1)  # type: ignore[no-any-return]
