"""Sizes and memory layouts of maps, in one place so that every kernel and the fakes agree.

A result follows its first operand: channels-last in, channels-last out. A kernel tensor counts as
channels-last when it is pixel-major, (N, h, w, G, D) in memory: that is what a 1x1 convolution
running in channels-last writes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_channels_last(tensor: Tensor) -> bool:
    """Return whether results made from this map should be channels-last.

    A cheaper question than PyTorch's own, asked at every call: channels adjacent in memory, and
    not also contiguous, as maps of one pixel or one channel are.
    """
    return tensor.stride(1) == 1 and not tensor.is_contiguous()


def format_of(tensor: Tensor) -> torch.memory_format:
    """Return the memory format of results made from this map."""
    return torch.channels_last if is_channels_last(tensor) else torch.contiguous_format


def empty_map(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Return an uninitialised (N, C, h, w) map in the memory format of ``like``."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=format_of(like))


def empty_kernel(like: Tensor, groups: int, taps: int) -> Tensor:
    """Return an uninitialised (N, G, D, h, w) kernel in the memory format of the map ``like``."""
    n, _, h, w = like.shape
    if is_channels_last(like):
        return like.new_empty((n, h, w, groups, taps)).permute(0, 3, 4, 1, 2)
    return like.new_empty((n, groups, taps, h, w))


def pixel_major(kernel: Tensor) -> Tensor:
    """Return ``kernel`` with (N, h, w, G, D) order in memory."""
    return kernel.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)


def as_map(tensor: Tensor) -> Tensor:
    """Return a map as the C kernels take it, channels adjacent; other layouts are converted."""
    if tensor.stride(1) == 1 or tensor.shape[1] == 1:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


def map_steps(tensor: Tensor) -> tuple[int, int, int]:
    """Return the strides of images, rows and columns, for the C kernels."""
    step = tensor.stride()
    return step[0], step[2], step[3]


def strided(size: int, stride: int) -> int:
    """Return the side of a strided map: rounded up."""
    return (size + stride - 1) // stride


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what sums of this dtype are kept in: float32 for half precision."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
