"""Gather, scatter and correlate in plain PyTorch: specification, oracle, fallback, export path.

Legend: N batch, C channels, G groups, D taps, H and W full size, h and w size after the stride.
``offsets`` is flat: row and column of tap 0, row and column of tap 1, and so on.

All three walk over the taps. A tap pairs pixel i of the strided map with pixel ``stride * i +
offset`` of the full map, so one strided slice of the zero-padded full map holds the partners of
all pixels at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from volution.ops._shared.layout import accumulation_dtype, format_of, is_channels_last, pixel_major


def gather(input: Tensor, kernel: Tensor, offsets: Sequence[int], stride: int) -> Tensor:
    """``y[c, i] = sum over taps of kernel[g(c), tap, i] * input[c, stride * i + offset]``."""
    n, c, height, width = input.shape
    groups, h, w = kernel.shape[1], kernel.shape[3], kernel.shape[4]
    wide = accumulation_dtype(input.dtype)
    k = kernel.to(wide).unsqueeze(2)  # N G 1 D h w
    padded = F.pad(input.to(wide), _padding(height, width, h, w, offsets, stride))
    out = torch.zeros((), dtype=wide, device=input.device)
    for tap, rows, columns in _slices(h, w, offsets, stride):
        patch = padded[:, :, rows, columns].reshape(n, groups, c // groups, h, w)
        out = out + k[:, :, :, tap] * patch
    return _in_format(out.reshape(n, c, h, w).to(input.dtype), input)


def scatter(
    input: Tensor, kernel: Tensor, offsets: Sequence[int], size: Sequence[int], stride: int
) -> Tensor:
    """``y[c, t] = sum of kernel[g(c), tap, i] * input[c, i] where stride * i + offset = t``."""
    n, c, h, w = input.shape
    groups = kernel.shape[1]
    wide = accumulation_dtype(input.dtype)
    left, right, top, bottom = _padding(size[0], size[1], h, w, offsets, stride)
    out = torch.zeros(
        (n, groups, c // groups, size[0] + top + bottom, size[1] + left + right),
        dtype=wide,
        device=input.device,
    )
    k = kernel.to(wide).unsqueeze(2)  # N G 1 D h w
    source = input.to(wide).reshape(n, groups, c // groups, h, w)
    for tap, rows, columns in _slices(h, w, offsets, stride):
        out[:, :, :, rows, columns] += k[:, :, :, tap] * source
    inside = out[:, :, :, top : top + size[0], left : left + size[1]]
    return _in_format(inside.reshape(n, c, *size).to(input.dtype), input)


def correlate(
    query: Tensor, input: Tensor, offsets: Sequence[int], groups: int, stride: int
) -> Tensor:
    """``k[g, tap, i] = sum over channels of g of query[c, i] * input[c, stride * i + offset]``."""
    n, c, h, w = query.shape
    height, width = input.shape[2:]
    wide = accumulation_dtype(input.dtype)
    q = query.to(wide).reshape(n, groups, c // groups, h, w)
    padded = F.pad(input.to(wide), _padding(height, width, h, w, offsets, stride))
    taps = [
        (q * padded[:, :, rows, columns].reshape(q.shape)).sum(2)
        for _, rows, columns in _slices(h, w, offsets, stride)
    ]
    kernel = torch.stack(taps, dim=2).to(input.dtype)  # N G D h w
    if is_channels_last(query):
        return pixel_major(kernel)
    return kernel.contiguous()


def _in_format(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=format_of(like))


def _padding(
    height: int, width: int, h: int, w: int, offsets: Sequence[int], stride: int
) -> tuple[int, int, int, int]:
    """Return left, right, top, bottom: the zeros that put every tap's partner inside the map."""
    top, left = (-min(0, *offsets[axis::2]) for axis in (0, 1))
    bottom = _at_least_zero(max(offsets[0::2]) + stride * (h - 1) + 1 - height)
    right = _at_least_zero(max(offsets[1::2]) + stride * (w - 1) + 1 - width)
    return left, right, top, bottom


def _at_least_zero(value: int) -> int:
    # Symbolic sizes under export: max() would fix the branch for all sizes.
    return torch.sym_max(0, value)  # type: ignore[return-value]


def _slices(
    h: int, w: int, offsets: Sequence[int], stride: int
) -> Iterator[tuple[int, slice, slice]]:
    """Yield each tap with the rows and columns of the padded map it reads."""
    top, left = (-min(0, *offsets[axis::2]) for axis in (0, 1))
    for tap, (row, column) in enumerate(zip(offsets[0::2], offsets[1::2], strict=True)):
        y, x = top + row, left + column
        yield (
            tap,
            slice(y, y + stride * (h - 1) + 1, stride),
            slice(x, x + stride * (w - 1) + 1, stride),
        )
