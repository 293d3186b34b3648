"""How a call of the Triton kernels is cut into programs: tiles, constants, tables of taps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from volution.ops._shared.layout import is_channels_last
from volution.ops._shared.tiles import blocks, needs_64_bits, power_of_2

_WIDEST_WINDOW = 15
# Farther offsets lie outside every image; cutting them here keeps row numbers in 32 bits.
_FAR = 2**29


@dataclass
class Plan:
    """The programs of one call, and the constants its kernel is compiled for."""

    programs: int
    tiles_w: int
    tiles: int
    channel_blocks: int
    offsets: tuple[int, ...]
    device: torch.device
    constants: dict[str, Any]

    @classmethod
    def make(
        cls,
        first: Tensor,
        second: Tensor,
        out: Tensor,
        groups: int,
        size: tuple[int, int],
        offsets: Sequence[int],
        stride: int,
    ) -> Plan | None:
        """Plan a call over strided maps of ``size``; None if there is nothing to compute."""
        group_channels = first.shape[1] // groups
        if out.numel() == 0 or group_channels == 0:
            return None
        offsets = tuple(offsets)
        fast = is_channels_last(first)
        bh, bw, bg, bc = tile(groups, group_channels, *size, fast)
        tiles_w = blocks(size[1], bw)
        tiles = blocks(size[0], bh) * tiles_w
        channel_blocks = blocks(group_channels, bc)
        programs = first.shape[0] * tiles * blocks(groups, bg) * channel_blocks
        window, dilation = _window(offsets)
        constants = {
            "CG": group_channels, "STRIDE": stride, "WINDOW": window, "DILATION": dilation,
            "BH": bh, "BW": bw, "BG": bg, "BC": bc, "FAST": fast,
            "WIDE": needs_64_bits(first, second, out),
        }  # fmt: skip
        return cls(programs, tiles_w, tiles, channel_blocks, offsets, first.device, constants)

    def tap_table(self) -> Tensor | None:
        """Return the taps as rows of (number, row, column), or None if they are constants."""
        return None if self.constants["WINDOW"] else _tap_table(self.offsets, self.device)

    def residue_table(self) -> Tensor | None:
        """Return the taps of each residue class, or None if they are constants."""
        if self.constants["STRIDE"] > 1:
            # The opposite offsets are whole pixels of the strided map at stride 1 only.
            self.constants["WINDOW"] = 0
        if self.constants["WINDOW"]:
            return None
        return _residue_table(self.offsets, self.constants["STRIDE"], self.device)


def tile(groups: int, group_channels: int, h: int, w: int, fast: bool) -> tuple[int, int, int, int]:
    """Choose rows, columns, groups and channels of a tile; the one place to tune.

    All are powers of two, as Triton wants. The choices were checked in the machine code (16-byte
    loads, no spilled registers) and not yet on a GPU's clock. The reasons, for 128 threads:

    - Channels-last: 16 or more adjacent channels fill the 32-byte sectors of memory, so small
      groups share a tile; 1024 values are 8 for each thread, enough loads at once. A tile close
      to a square has the smallest rim, hence the fewest re-reads of neighbours.
    - Contiguous: 32 columns are what a warp reads in one piece, and 128 pixels leave a whole group
      to one thread, so that correlate sums its channels without crossing warps.
    """
    bc = min(power_of_2(group_channels), 64 if fast else 16)
    bg = min(power_of_2(groups), max(1, 16 // bc))
    pixels = min(128, max(16, 1024 // (bc * bg))) if fast else 128
    high, wide = power_of_2(h), power_of_2(w)
    bw = min(wide, 8 if fast else 32)
    bh = min(high, pixels // bw)
    return bh, min(wide, pixels // bh), bg, bc


@lru_cache(maxsize=1024)
def _window(offsets: tuple[int, ...]) -> tuple[int, int]:
    """Return side and dilation if the offsets are a centred square window, else two zeros.

    A mirrored window counts as one with a negative dilation.
    """
    side = round((len(offsets) // 2) ** 0.5)
    if side % 2 == 0 or side > _WIDEST_WINDOW:
        return 0, 0
    dilation = offsets[-1] // (side // 2) if side > 1 else 1
    reach = [dilation * (step - side // 2) for step in range(side)]
    square = tuple(step for row in reach for column in reach for step in (row, column))
    return (side, dilation) if offsets == square and abs(reach[0]) < _FAR else (0, 0)


@lru_cache(maxsize=256)
def _tap_table(offsets: tuple[int, ...], device: torch.device) -> Tensor:
    taps = zip(offsets[0::2], offsets[1::2], strict=True)
    entries = [[t, _near(row), _near(column)] for t, (row, column) in enumerate(taps)]
    return torch.tensor(entries, dtype=torch.int32, device=device)


@lru_cache(maxsize=256)
def _residue_table(offsets: tuple[int, ...], stride: int, device: torch.device) -> Tensor:
    """Return where the taps of each class of pixels start and end, then the taps by class.

    Pixel ``stride * a + r`` receives a tap from strided pixel ``a + (r - offset) / stride``, if
    that is whole.
    """
    taps = list(enumerate(zip(offsets[0::2], offsets[1::2], strict=True)))
    starts, entries = [0], []
    for residue in range(stride**2):
        for t, (dy, dx) in taps:
            row, column = residue // stride - dy, residue % stride - dx
            if row % stride == 0 and column % stride == 0:
                entries += [t, _near(row // stride), _near(column // stride)]
        starts.append(len(entries) // 3)
    return torch.tensor(starts + entries, dtype=torch.int32, device=device)


def _near(offset: int) -> int:
    return min(_FAR, max(-_FAR, offset))
