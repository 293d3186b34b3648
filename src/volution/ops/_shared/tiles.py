"""What the plans of all Triton kernels share: sizes of tiles, widths of offsets, the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

INT32_LIMIT = 2**31


def blocks(size: int, block: int) -> int:
    """Return how many blocks cover ``size``."""
    return (size + block - 1) // block


def power_of_2(size: int) -> int:
    """Return the smallest power of two that is not below ``size``; tiles are made of them."""
    return 1 << (size - 1).bit_length()


def reach(tensor: Tensor) -> int:
    """Return the distance in elements from the first to the last of one batch item."""
    pairs = zip(tensor.shape[1:], tensor.stride()[1:], strict=True)
    return sum((size - 1) * step for size, step in pairs)


def needs_64_bits(*tensors: Tensor | None) -> bool:
    """Return whether offsets within one batch item are too large for 32 bits in a tensor."""
    return max(reach(x) for x in tensors if x is not None) >= INT32_LIMIT


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context to launch in: Triton takes the current device, not that of the tensors."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
