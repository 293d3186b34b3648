"""Shapes chosen to hurt, and the operators' definitions as plain loops."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from volution.ops import window_offsets


@dataclass(frozen=True)
class Case:
    """A full map of ``n, c, height, width``; ``id`` says why the case exists."""

    id: str
    n: int
    c: int
    height: int
    width: int
    groups: int
    offsets: tuple[int, ...]
    stride: int = 1

    @property
    def h(self) -> int:
        return -(-self.height // self.stride)

    @property
    def w(self) -> int:
        return -(-self.width // self.stride)

    @property
    def taps(self) -> list[tuple[int, int]]:
        return list(zip(self.offsets[0::2], self.offsets[1::2], strict=True))

    @property
    def summands(self) -> int:
        """The most products in any of the operators' sums."""
        return max(len(self.taps), self.c // self.groups)

    def full(self) -> Tensor:
        return torch.randn(self.n, self.c, self.height, self.width, dtype=torch.float64)

    def strided(self) -> Tensor:
        return torch.randn(self.n, self.c, self.h, self.w, dtype=torch.float64)

    def kernel(self) -> Tensor:
        taps = len(self.taps)
        return torch.randn(self.n, self.groups, taps, self.h, self.w, dtype=torch.float64)

    def resized(self) -> Case:
        """The same operator on another batch and image."""
        return replace(self, n=self.n + 1, height=self.height + 2, width=self.width + 3)


square = window_offsets
CASES = [
    Case("odd-square", 2, 8, 7, 7, 2, square(3)),
    Case("stride2-uneven", 2, 6, 7, 5, 3, square(3), 2),
    Case("window-wider-than-image", 1, 6, 3, 5, 3, square(7)),
    Case("stride3", 1, 6, 8, 10, 2, square(5), 3),
    Case("stride-beyond-window", 1, 4, 9, 8, 1, square(1), 3),
    Case("dilated", 1, 4, 8, 8, 1, square(3, 3)),
    Case("dilation-beyond-image", 1, 4, 4, 5, 2, square(3, 6)),
    Case("dilated-and-strided", 1, 4, 9, 7, 2, square(3, 2), 2),
    Case("smallest", 1, 1, 1, 1, 1, square(1)),
    Case("one-channel", 2, 1, 5, 6, 1, square(3)),
    Case("a-group-per-channel", 2, 20, 5, 4, 20, square(3)),
    Case("one-group", 1, 20, 4, 9, 1, square(3)),
    Case("groups-of-5", 1, 15, 5, 5, 3, square(3)),
    Case("groups-of-32", 1, 64, 4, 4, 2, square(3)),
    Case("groups-of-48", 1, 48, 3, 5, 1, square(3)),
    Case("groups-of-64", 1, 128, 2, 2, 2, square(3)),
    Case("groups-of-100", 1, 200, 1, 3, 2, square(3)),
    Case("one-row", 1, 4, 1, 19, 2, square(3)),
    Case("one-column", 1, 4, 19, 1, 2, square(3)),
    Case("wider-than-a-tile", 1, 2, 2, 141, 1, square(3)),
    Case("list-not-a-square", 2, 6, 5, 6, 2, (0, 5, -2, 1, 3, 3)),
    Case("list-with-stride", 1, 6, 7, 9, 2, (0, 1, -2, -3, 4, 0, 1, 1), 2),
    Case("list-of-one-side", 1, 4, 5, 5, 2, (1, 1, 2, 1)),
    Case("the-same-tap-twice", 1, 4, 5, 5, 2, (0, 1, 0, 1)),
    Case("far-outside", 1, 4, 4, 5, 2, (90, 0, 0, -70, -80, 60)),
    Case("odd-list-like-a-window", 1, 4, 5, 5, 1, (*square(3)[:-2], 1, 2)),
]
DYNAMIC = Case("any-size", 3, 8, 6, 7, 2, square(3))
SMALL = Case("small", 2, 4, 4, 3, 2, (0, 0, -1, 1, 2, 0), 2)


def _terms(case: Case):
    """Yield group, tap, channel, strided pixel and full pixel of every product."""
    width = case.c // case.groups
    for c, (d, (dy, dx)) in itertools.product(range(case.c), enumerate(case.taps)):
        for i, j in itertools.product(range(case.h), range(case.w)):
            y, x = case.stride * i + dy, case.stride * j + dx
            if 0 <= y < case.height and 0 <= x < case.width:
                yield c // width, d, c, i, j, y, x


def gather_by_definition(case: Case, full: Tensor, kernel: Tensor) -> Tensor:
    """``y[c, i] += k[g, d, i] * x[c, s * i + offset]``."""
    k, x = kernel.numpy(), full.numpy()
    out = torch.zeros_like(case.strided()).numpy()
    for g, d, c, i, j, y, z in _terms(case):
        out[:, c, i, j] += k[:, g, d, i, j] * x[:, c, y, z]
    return torch.from_numpy(out)


def scatter_by_definition(case: Case, strided: Tensor, kernel: Tensor) -> Tensor:
    """``y[c, s * i + offset] += k[g, d, i] * x[c, i]``."""
    k, x = kernel.numpy(), strided.numpy()
    out = torch.zeros_like(case.full()).numpy()
    for g, d, c, i, j, y, z in _terms(case):
        out[:, c, y, z] += k[:, g, d, i, j] * x[:, c, i, j]
    return torch.from_numpy(out)


def correlate_by_definition(case: Case, strided: Tensor, full: Tensor) -> Tensor:
    """``k[g, d, i] += q[c, i] * x[c, s * i + offset]``."""
    q, x = strided.numpy(), full.numpy()
    out = torch.zeros_like(case.kernel()).numpy()
    for g, d, c, i, j, y, z in _terms(case):
        out[:, g, d, i, j] += q[:, c, i, j] * x[:, c, y, z]
    return torch.from_numpy(out)
