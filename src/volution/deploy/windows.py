"""The neighbourhood operators in few nodes, for exporters.

The references walk over the taps of a window, which leaves some 400 nodes for each 7 by 7
involution: exporting a RedNet-26 then takes many minutes and gives a graph nobody can read. Cut
out as columns first, the same sum takes ten nodes. It needs more memory, hence not in ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from volution.ops import _library, reference_ops
from volution.ops._shared.layout import strided
from volution.ops._shared.neighbourhood import reference
from volution.ops.dmixer import reference as dmixer

__all__ = [
    "correlate_windows",
    "dynamic_rows",
    "gather_windows",
    "static_dynamic_windows",
    "window_ops",
]


@contextmanager
def window_ops() -> Iterator[None]:
    """Run every operator as plain PyTorch, and those over windows in few nodes."""
    forms: dict[str, Callable[..., Tensor]] = {
        "gather": _gather,
        "correlate": _correlate,
        "static_dynamic_conv2d": static_dynamic_windows,
    }
    # No operator of its own in the dispatcher, so its reference is exchanged where it lies.
    shifted, dmixer.dynamic_depthwise_conv2d = dmixer.dynamic_depthwise_conv2d, dynamic_rows
    try:
        with _library.other_references(forms), reference_ops():
            yield
    finally:
        dmixer.dynamic_depthwise_conv2d = shifted


def gather_windows(input: Tensor, kernel: Tensor, offsets: Sequence[int], stride: int) -> Tensor:
    """Compute :func:`volution.ops.gather` for the taps of a centred square window.

    Raises:
        ValueError: If the offsets are others.
    """
    groups, h, w = kernel.shape[1], kernel.shape[3], kernel.shape[4]
    columns = _columns(input, groups, offsets, (h, w), stride)
    return (columns * kernel.unsqueeze(2)).sum(3).flatten(1, 2)


def correlate_windows(
    query: Tensor, input: Tensor, offsets: Sequence[int], groups: int, stride: int
) -> Tensor:
    """Compute :func:`volution.ops.correlate` for the taps of a centred square window.

    Raises:
        ValueError: If the offsets are others.
    """
    h, w = query.shape[2:]
    columns = _columns(input, groups, offsets, (h, w), stride)
    queries = query.reshape(*columns.shape[:3], 1, h, w)
    return (queries * columns).sum(2)


def static_dynamic_windows(
    input: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    offsets: Sequence[int],
    stride: int,
    dilation: int,
) -> Tensor:
    """Compute ``volution::static_dynamic_conv2d``: gather, convolve, add."""
    out = _gather(input, kernel, offsets, stride)
    if scale is not None:
        out = out * scale[:, None, None]
    if weight is not None:
        reach = dilation * (weight.shape[-1] // 2)
        # The operator keeps its weight as (1, C, K, K).
        filters, channels = weight.transpose(0, 1), input.shape[1]
        out = out + F.conv2d(input, filters, None, stride, reach, dilation, channels)
    if bias is not None:
        out = out + bias[:, None, None]
    return out if residual is None else out + residual


def dynamic_rows(
    input: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
) -> Tensor:
    """Compute :func:`volution.ops.dynamic_depthwise_conv2d`, for a column of taps at a time.

    The map is stacked ``K`` times, shifted by rows. Sizes and the number of images may be symbols.
    """
    side = kernel.shape[2]
    margin = dilation * (side // 2)
    padded = F.pad(input, [margin] * 4)
    # From the first pixel of a shifted map to its last, in steps of the stride.
    rows, columns = (stride * (strided(size, stride) - 1) + 1 for size in input.shape[2:])
    first = [dilation * tap for tap in range(side)]
    stacked = torch.stack([padded[:, :, at : at + rows : stride] for at in first], 2)
    terms = [
        (stacked[..., at : at + columns : stride] * kernel[..., tap, None, None]).sum(2)
        for tap, at in enumerate(first)
    ]
    out = sum(terms[1:], terms[0])
    return out if bias is None else out + bias[:, :, None, None]


def _gather(input: Tensor, kernel: Tensor, offsets: Sequence[int], stride: int) -> Tensor:
    form = reference.gather if _window(offsets) is None else gather_windows
    return form(input, kernel, offsets, stride)


def _correlate(
    query: Tensor, input: Tensor, offsets: Sequence[int], groups: int, stride: int
) -> Tensor:
    form = reference.correlate if _window(offsets) is None else correlate_windows
    return form(query, input, offsets, groups, stride)


def _columns(
    input: Tensor, groups: int, offsets: Sequence[int], size: Sequence[int], stride: int
) -> Tensor:
    """Return what each tap of each output pixel sees, ``(N, G, C // G, D, h, w)``."""
    window = _window(offsets)
    if window is None:
        raise ValueError("offsets must be those of volution.ops.window_offsets")
    side, dilation = window
    n, c = input.shape[:2]
    columns = F.unfold(input, side, dilation, side // 2 * dilation, stride)  # N C*D h*w
    return columns.reshape(n, groups, c // groups, side * side, *size)


def _window(offsets: Sequence[int]) -> tuple[int, int] | None:
    """Return side and dilation of the window whose taps these are, or None."""
    size = round((len(offsets) // 2) ** 0.5)
    reach = -min(0, *offsets)
    dilation = max(1, reach // max(1, size // 2))
    steps = [(i - size // 2) * dilation for i in range(size)]
    taps = [value for row in steps for column in steps for value in (row, column)]
    return (size, dilation) if size % 2 and list(offsets) == taps else None
