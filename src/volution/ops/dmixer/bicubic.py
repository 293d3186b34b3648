"""Bicubic resizing along one side of a table, as a matrix with four numbers in each row.

The cubic convolution of PyTorch's ``interpolate(mode="bicubic", align_corners=False)``: its
parameter is -0.75, and taps outside the table take its border. Positions are computed in float64,
where PyTorch computes them in the dtype of the table.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

_A = -0.75


def bicubic_taps(out: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which four entries each new one is made of, and their weights.

    Args:
        out: Entries of the resized side.
        size: Entries of the side as it is.
        device: Where the result lives.

    Returns:
        Indices, int64, and weights, float64, both of shape ``(out, 4)``. Traceable, also where
        ``out`` is a symbol.
    """
    at = torch.arange(out, device=device)
    # As a tensor: where the size is a symbol, exporters divide by tensors only.
    position = (at.double() + 0.5) * size / (at[-1:] + 1) - 0.5
    before = position.floor()
    t = (position - before)[:, None]  # out 1
    steps = torch.arange(-1, 3, device=device)
    index = (before.to(torch.int64)[:, None] + steps).clamp(0, size - 1)
    outer, inner = torch.cat([t + 1, 2 - t], 1), torch.cat([t, 1 - t], 1)  # out 2
    far = ((_A * outer - 5 * _A) * outer + 8 * _A) * outer - 4 * _A
    near = ((_A + 2) * inner - (_A + 3)) * inner * inner + 1
    return index, torch.cat([far[:, :1], near, far[:, 1:]], 1)


def bicubic_matrix(out: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix of the resizing, ``(out, size)``; traceable."""
    index, weight = bicubic_taps(out, size, device)
    # At a border two taps are one entry: they add up.
    hits = index[:, :, None] == torch.arange(size, device=device)  # out 4 size
    return (hits * weight[:, :, None]).sum(1).to(dtype)


@lru_cache(maxsize=32)
def cached_matrix(out: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix of an earlier call with the same arguments; not for tracers."""
    # A tensor made in inference mode could not be used where gradients are recorded later.
    with torch.inference_mode(False), torch.no_grad():
        return bicubic_matrix(out, size, dtype, device)


@lru_cache(maxsize=32)
def cached_taps(
    out: int, size: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the taps of an earlier call with the same arguments; not for tracers."""
    with torch.inference_mode(False), torch.no_grad():
        index, weight = bicubic_taps(out, size, device)
        return index, weight.to(dtype)


def bicubic_band(
    first: int, last: int, out: int, size: int, dtype: torch.dtype, device: torch.device
) -> tuple[int, Tensor]:
    """Return the part of the matrix that new entries ``first`` to ``last`` are made with.

    Neighbours are made of neighbours, so a few columns hold all that is not zero.

    Returns:
        The first of those columns, and the part, ``(last - first, columns)``.
    """
    start, _ = _reach(first, out, size)
    _, stop = _reach(last - 1, out, size)
    index, weight = (taps[first:last] for taps in cached_taps(out, size, dtype, device))
    part = torch.zeros(last - first, stop - start, dtype=dtype, device=device)
    return start, part.scatter_add_(1, index - start, weight)


def _reach(entry: int, out: int, size: int) -> tuple[int, int]:
    """Return the first entry that a new one may take, and the one after the last."""
    # One more on both sides: the tensors may have rounded to the neighbour.
    before = math.floor((entry + 0.5) * size / out - 0.5)
    return max(0, min(before - 2, size - 1)), min(size, max(before + 4, 1))


def resize_side(table: Tensor, axis: int, out: int) -> Tensor:
    """Resize one side of a table by four selections, each as large as the result; traceable."""
    index, weight = bicubic_taps(out, table.shape[axis], table.device)
    shape = [1] * table.dim()
    shape[axis] = -1
    parts = [
        table.index_select(axis, index[:, tap]) * weight[:, tap].to(table.dtype).reshape(shape)
        for tap in range(4)
    ]
    return sum(parts[1:], parts[0])
