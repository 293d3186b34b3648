"""How a call of the depthwise Triton kernels is cut into programs, and whether it is one at all.

Every number here is a heuristic. None has been measured: ``make gpu-check`` on a GPU is the first
to do so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from volution.ops._shared.layout import is_channels_last
from volution.ops._shared.tiles import INT32_LIMIT, blocks, needs_64_bits, power_of_2

# Columns of a window that are unrolled; wider windows loop over them.
_UNROLLED = 7
# Values of a tile: 16 for each of 128 threads, half of that where each is loaded by itself.
_TILE, _TILE_CONTIGUOUS = 2048, 1024
# Products that a program of the weight's gradient keeps apart before it sums them.
_PRODUCTS = 4096
# Columns of the window that such a program takes at once.
_COLUMNS = 8
# Programs that fill a large GPU several times over.
_PROGRAMS = 1024


def framework_is_faster(kernel_size: int, stride: int, dilation: int, images: int) -> bool:
    """Say whether a call should go to PyTorch's own convolution instead; the place for the rule.

    Not measured on any GPU yet, hence no for every call: a rule belongs here only with the
    measurement behind it.

    Args:
        kernel_size: Side of the window.
        stride: Step between output pixels.
        dilation: Step between taps.
        images: Kernels, 1 where the batch shares them.
    """
    return False


@dataclass
class MapPlan:
    """The programs of a call that fills a map, and the constants its kernel is compiled for."""

    programs: int
    tiles_w: int
    tiles: int
    constants: dict[str, Any]

    @classmethod
    def make(
        cls,
        input: Tensor,
        weight: Tensor,
        out: Tensor,
        gate: Tensor | None,
        size: tuple[int, int],
        stride: int,
        dilation: int,
    ) -> MapPlan | None:
        """Plan a call over tiles of a grid of ``size``; None if there is nothing to compute."""
        n, c = out.shape[:2]
        if out.numel() == 0:
            return None
        fast = is_channels_last(input)
        bh, bw, bc = tile(c, *size, fast)
        tiles_w = blocks(size[1], bw)
        tiles = blocks(size[0], bh) * tiles_w
        constants = {
            "K": weight.shape[2], "STRIDE": stride, "DILATION": dilation,
            "BH": bh, "BW": bw, "BC": bc, "FAST": fast,
            "WIDE": needs_64_bits(input, weight, out, gate),
        }  # fmt: skip
        return cls(n * tiles * blocks(c, bc), tiles_w, tiles, constants)

    def unroll(self, columns: int) -> None:
        """Decide for a kernel that visits so many columns of the window."""
        self.constants["UNROLL"] = columns <= _UNROLLED


@dataclass
class WeightPlan:
    """The programs of a call that sums over pixels."""

    programs: int
    chunks: int
    constants: dict[str, Any]

    @classmethod
    def make(
        cls, grad: Tensor, input: Tensor, batch: int, kernel_size: int, stride: int, dilation: int
    ) -> WeightPlan | None:
        """Plan the partial sums of ``batch`` kernels; None if there is nothing to sum."""
        n, c, h, w = grad.shape
        pixels = n // max(1, batch) * h * w
        if pixels * c == 0:
            return None
        fast = is_channels_last(input)
        bv = min(_COLUMNS, power_of_2(kernel_size))
        # As in `tile`: the axis that is adjacent in memory is the long one.
        bc = min(power_of_2(c), 32 if fast else 8)
        bp = min(power_of_2(pixels), _PRODUCTS // (bv * bc))
        columns = blocks(kernel_size, bv)
        sums = batch * blocks(c, bc) * kernel_size * columns
        chunks = min(blocks(pixels, bp), blocks(_PROGRAMS, sums))
        steps = blocks(blocks(pixels, bp), chunks)
        chunks = blocks(pixels, steps * bp)
        constants = {
            "K": kernel_size, "STRIDE": stride, "DILATION": dilation, "STEPS": steps,
            "BV": bv, "BP": bp, "BC": bc, "FAST": fast,
            "WIDE": needs_64_bits(grad, input) or pixels + steps * bp >= INT32_LIMIT,
        }  # fmt: skip
        return cls(sums * chunks, chunks, constants)


def tile(channels: int, h: int, w: int, fast: bool) -> tuple[int, int, int]:
    """Choose rows, columns and channels of a tile, all powers of two; the one place to tune.

    - Channels-last: 32 adjacent channels fill whole sectors of memory in every dtype, and 8 by 8
      pixels read each of their neighbours about 3 times for a window of 7 by 7, from the L1 cache.
    - Contiguous: 32 columns are what a warp reads in one piece.
    """
    high, wide = power_of_2(h), power_of_2(w)
    values = _TILE if fast else _TILE_CONTIGUOUS
    bc = min(power_of_2(channels), 32 if fast else 4)
    bw, bh = min(wide, 8 if fast else 32), min(high, 8)
    # A flat map, or one of few channels, has room for more of what it does have.
    bw = min(wide, max(bw, values // 4 // (bh * bc)))
    bc = min(power_of_2(channels), max(bc, min(64, values // (bh * bw))))
    return bh, bw, bc


def nearest(step: int, height: int, width: int) -> int:
    """Cut a stride or dilation to the size of the image: all larger ones do the same.

    Keeps row and column numbers in 32 bits.
    """
    return min(step, max(height, width))


def residues(stride: int, dilation: int) -> dict[str, int]:
    """Return which taps a pixel of the transpose receives, by its remainder r at the stride s.

    Tap u reaches it if ``r - (u - K // 2) * d`` is a multiple of s. With g the common divisor of d
    and s this holds for no tap unless g divides r, and then for every (s / g)-th, starting where
    ``u = K // 2 + r / g * (d / g)**-1  (mod s / g)``.
    """
    common = math.gcd(stride, dilation)
    period = stride // common
    inverse = pow(dilation // common, -1, period) if period > 1 else 0
    return {"COMMON": common, "PERIOD": period, "INVERSE": inverse}
