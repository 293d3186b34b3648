"""HorNet as its authors formulate it, from PyTorch's own layers; names are those of their weights.

Paper: Rao et al., "HorNet: Efficient High-Order Spatial Interactions with Recursive Gated
Convolutions", NeurIPS 2022, https://arxiv.org/abs/2207.14284. Without stochastic depth. The norm
over the channels of a map is arithmetic on the map, and the block's MLP is two linear layers
between two permutations, as in their code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PlainGnConv", "PlainHorNet"]

Filter = Callable[[int], nn.Module]


class _ChannelNorm(nn.Module):
    """Layer norm over the channels of ``(N, C, H, W)``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        variance = centred.square().mean(1, keepdim=True)
        normed = centred / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * normed + self.bias[:, None, None]


class _GlobalLocalFilter(nn.Module):
    """Half of the channels by a 3 by 3 depthwise convolution, half in the Fourier domain."""

    def __init__(self, dim: int, height: int, width: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, bias=False, groups=dim // 2)
        self.complex_weight = nn.Parameter(0.02 * torch.randn(dim // 2, height, width, 2))
        self.pre_norm = _ChannelNorm(dim)
        self.post_norm = _ChannelNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        near, far = self.pre_norm(x).chunk(2, dim=1)
        height, width = x.shape[2:]
        spectrum = torch.fft.rfft2(
            far.to(torch.promote_types(x.dtype, torch.float32)), norm="ortho"
        )
        weight: Tensor = self.complex_weight
        if weight.shape[1:3] != spectrum.shape[2:]:
            size = (spectrum.shape[2], spectrum.shape[3])
            images = weight.permute(3, 0, 1, 2)
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=True)
            weight = images.permute(1, 2, 3, 0)
        spectrum = spectrum * torch.view_as_complex(weight.contiguous())
        far = torch.fft.irfft2(spectrum, s=(height, width), norm="ortho")
        both = torch.stack((self.dw(near), far), dim=2).reshape(x.shape)
        return self.post_norm(both)  # type: ignore[no-any-return]


class PlainGnConv(nn.Module):
    """Recursive gated convolution: one filter over all gates, then gate by gate."""

    def __init__(self, dim: int, order: int, filter: Filter | None = None) -> None:
        super().__init__()
        self.dims = [dim // 2**i for i in range(order - 1, -1, -1)]
        width = sum(self.dims)
        self.proj_in = nn.Conv2d(dim, 2 * dim, 1)
        conv = nn.Conv2d(width, width, 7, padding=3, groups=width) if filter is None else None
        self.dwconv: nn.Module = conv if filter is None else filter(width)  # type: ignore[assignment]
        self.proj_out = nn.Conv2d(dim, dim, 1)
        self.pws = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(self.dims))
        self.scale = 1 / 3

    def forward(self, x: Tensor) -> Tensor:
        first, rest = self.proj_in(x).split((self.dims[0], sum(self.dims)), dim=1)
        gates = (self.dwconv(rest) * self.scale).split(self.dims, dim=1)
        x = first * gates[0]
        for widen, gate in zip(self.pws, gates[1:], strict=True):
            x = widen(x) * gate
        return self.proj_out(x)  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, dim: int, order: int, filter: Filter | None) -> None:
        super().__init__()
        self.norm1 = _ChannelNorm(dim)
        self.gnconv = PlainGnConv(dim, order, filter)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma1 = nn.Parameter(torch.full((dim,), 1e-6))
        self.gamma2 = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma1[:, None, None] * self.gnconv(self.norm1(x))
        inner = self.norm2(x.permute(0, 2, 3, 1))
        inner = self.gamma2 * self.pwconv2(self.act(self.pwconv1(inner)))
        return x + inner.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class PlainHorNet(nn.Module):
    """HorNet for classification; the widths are those of the tiny networks.

    Args:
        num_classes: Classes of the classifier.
        gf: Filter stages 3 and 4 in the Fourier domain.
        base_dim: Channels of the first stage.
        depths: Blocks of each stage.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        gf: bool = False,
        base_dim: int = 64,
        depths: Sequence[int] = (2, 3, 18, 2),
    ) -> None:
        super().__init__()
        dims = [base_dim * 2**i for i in range(4)]
        filters: list[Filter | None] = [None] * 4
        if gf:
            filters[2:] = (
                lambda dim: _GlobalLocalFilter(dim, 14, 8),
                lambda dim: _GlobalLocalFilter(dim, 7, 4),
            )
        stem = nn.Sequential(nn.Conv2d(3, base_dim, 4, 4), _ChannelNorm(base_dim))
        between = (
            nn.Sequential(_ChannelNorm(narrow), nn.Conv2d(narrow, wide, 2, 2))
            for narrow, wide in pairwise(dims)
        )
        self.downsample_layers = nn.ModuleList((stem, *between))
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Block(dims[i], i + 2, filters[i]) for _ in range(depth)))
            for i, depth in enumerate(depths)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.head(self.norm(x.mean((2, 3))))  # type: ignore[no-any-return]
