"""Hand the three operators to the compiled CPU library.

The C side wants channels-last maps (channel stride 1) and pixel-major kernels (taps of a group
adjacent, groups of a pixel adjacent); every other stride is free, so slices and expanded tensors
pass without a copy. Any other layout is converted once, here.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from volution.ops import _native
from volution.ops._shared.layout import as_map, empty_kernel, empty_map, map_steps, pixel_major


def gather(input: Tensor, kernel: Tensor, offsets: Sequence[int], stride: int) -> Tensor:
    """Compute :func:`reference.gather` on the CPU."""
    n, c, height, width = input.shape
    _, groups, taps, h, w = kernel.shape
    out = empty_map(input, (n, c, h, w))
    x, k = as_map(input), as_kernel(kernel)
    y = as_map(out)
    sizes = (n, c, height, width, groups, taps, h, w, stride)
    _native.call(
        "gather", sizes + map_steps(x) + map_steps(y) + kernel_steps(k), offsets, (x, k), y
    )
    return out if y is out else out.copy_(y)


def scatter(
    input: Tensor, kernel: Tensor, offsets: Sequence[int], size: Sequence[int], stride: int
) -> Tensor:
    """Compute :func:`reference.scatter` on the CPU."""
    n, c, h, w = input.shape
    groups, taps = kernel.shape[1:3]
    out = empty_map(input, (n, c, *size))
    x, k = as_map(input), as_kernel(kernel)
    y = as_map(out)
    sizes = (n, c, *size, groups, taps, h, w, stride)
    _native.call(
        "scatter", sizes + map_steps(y) + map_steps(x) + kernel_steps(k), offsets, (x, k), y
    )
    return out if y is out else out.copy_(y)


def correlate(
    query: Tensor, input: Tensor, offsets: Sequence[int], groups: int, stride: int
) -> Tensor:
    """Compute :func:`reference.correlate` on the CPU."""
    n, c, h, w = query.shape
    height, width = input.shape[2:]
    taps = len(offsets) // 2
    out = empty_kernel(query, groups, taps)
    q, x = as_map(query), as_map(input)
    k = as_kernel(out)
    sizes = (n, c, height, width, groups, taps, h, w, stride)
    _native.call(
        "correlate", sizes + map_steps(x) + map_steps(q) + kernel_steps(k), offsets, (q, x), k
    )
    return out if k is out else out.copy_(k)


def as_kernel(tensor: Tensor) -> Tensor:
    """Return a kernel as the C side takes it: taps of a group adjacent, groups of a pixel too."""
    _, groups, taps, _, _ = tensor.shape
    if (tensor.stride(2) == 1 or taps == 1) and (tensor.stride(1) == taps or groups == 1):
        return tensor
    return pixel_major(tensor)


def kernel_steps(tensor: Tensor) -> tuple[int, int, int]:
    """Return the strides of images, rows and columns of a kernel."""
    step = tensor.stride()
    return step[0], step[3], step[4]
