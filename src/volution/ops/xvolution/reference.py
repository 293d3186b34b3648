"""The operators of the room in plain PyTorch.

Pixel shift self-attention does as its name says: shift, multiply, sum. The static and dynamic
convolution is the sum of its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from volution.ops._shared.layout import accumulation_dtype, format_of


def pssa2d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    heads: int,
    offsets: Sequence[int],
    stride: int = 1,
    scale: float | None = None,
    normalize: str = "none",
) -> Tensor:
    """Compute :func:`volution.ops.pssa2d` one shift of the whole map at a time."""
    wide = accumulation_dtype(v.dtype)
    q_heads, k_heads, v_heads = (
        x.to(wide).unflatten(1, (heads, x.shape[1] // heads)) for x in (q, k, v)
    )  # N heads width H W
    factor = q_heads.shape[2] ** -0.5 if scale is None else scale
    pairs = list(zip(offsets[0::2], offsets[1::2], strict=True))
    logits = torch.stack(
        [factor * (q_heads * shifted(k_heads, *pair, stride)).sum(2) for pair in pairs], 2
    )  # N heads D h w
    if normalize == "softmax":
        inside = [shifted(torch.ones_like(k_heads[:1, :1, :1]), *pair, stride) for pair in pairs]
        outside = torch.cat(inside, 2) == 0
        logits = logits.masked_fill(outside, torch.finfo(wide).min).softmax(2)
        logits = logits.masked_fill(outside, 0.0)
    terms = [
        logits[:, :, tap, None] * shifted(v_heads, *pair, stride) for tap, pair in enumerate(pairs)
    ]
    return torch.stack(terms).sum(0).flatten(1, 2).to(v.dtype)


def shifted(map: Tensor, row: int, column: int, stride: int) -> Tensor:
    """Return what each pixel of a strided map sees at an offset; zero beyond the image."""
    height, width = map.shape[-2:]
    above, left = max(0, -row), max(0, -column)
    padded = F.pad(map, (left, max(0, column), above, max(0, row)))
    top, start = above + row, left + column
    return padded[..., top : top + height : stride, start : start + width : stride]


def in_parts(
    gather: Callable[..., Tensor],
    convolve: Callable[..., Tensor],
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
    """Compute ``static_dynamic_conv2d`` with any gather and depthwise convolution, and add."""
    wide = accumulation_dtype(input.dtype)
    x = input.to(wide)
    out = gather(x, kernel.to(wide), offsets, stride)
    if scale is not None:
        out = out * scale.to(wide)[:, None, None]
    if weight is not None:
        rest = (None, None, stride, dilation, 1.0, False)
        out = out + convolve(x, weight.to(wide), *rest)
    if bias is not None:
        out = out + bias.to(wide)[:, None, None]
    if residual is not None:
        out = out + residual.to(wide)
    return out.to(input.dtype).contiguous(memory_format=format_of(input))
