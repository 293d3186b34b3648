"""The two operators of this room in plain PyTorch, as their formulas read.

Legend: N batch, C channels, H and W size, K = W // 2 + 1 columns of the half spectrum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def gnconv2d(
    p: Tensor, q: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> Tensor:
    """``p <- (w p + b) * q``, slice of ``q`` by slice, after a first gate without a matrix."""
    start = p.shape[1]
    p = p * q[:, :start]
    for w, b in zip(weights, biases, strict=True):
        p = torch.einsum("dc,nchw->ndhw", w.flatten(1), p)  # N D H W
        if b is not None:
            p = p + b[:, None, None]
        gate = q[:, start : start + w.shape[0]]
        # A matrix beyond the last slice projects the result.
        p = p * gate if gate.shape[1] else p
        start += w.shape[0]
    return p


def global_filter2d(input: Tensor, spectrum: Tensor) -> Tensor:
    """Multiply in the Fourier domain; ``spectrum`` is complex, (C, H, K)."""
    transformed = torch.fft.rfft2(input, norm="ortho")  # N C H K
    size = input.shape[2:]
    filtered: Tensor = torch.fft.irfft2(transformed * spectrum, s=size, norm="ortho")
    return filtered


def resize_spectrum(complex_weight: Tensor, rows: int, columns: int) -> Tensor:
    """Resize real and imaginary parts, (C, h, w, 2) to (C, rows, columns, 2)."""
    parts = complex_weight.permute(3, 0, 1, 2)  # 2 C h w
    resized = F.interpolate(parts, size=(rows, columns), mode="bilinear", align_corners=True)
    return resized.permute(1, 2, 3, 0)
