"""Depthwise convolution in plain PyTorch: specification, oracle, fallback, export path.

Legend: N batch, C channels, K kernel side, H and W full size, h and w size after the stride.
Weights are ``(B, C, K, K)`` and biases ``(B, C)``: B is 1 where the batch shares them, N where
every image has its own. Gates have the first channels of the output, or all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from volution.ops._shared.layout import accumulation_dtype, format_of


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    stride: int,
    dilation: int,
    scale: float,
    gelu: bool,
    shortcut: bool = False,
) -> Tensor:
    """``y = act(scale * (conv(input, weight) + bias + input)) * gate``, a kernel per channel."""
    wide = accumulation_dtype(input.dtype)
    settings = _settings(weight, stride, dilation)
    x, w = _one_image(input.to(wide), weight.to(wide))
    out = F.conv2d(x, w, groups=w.shape[0], **settings)
    out = out.reshape(input.shape[0], input.shape[1], *out.shape[2:])
    if bias is not None:
        out = out + bias.to(wide)[:, :, None, None]
    if shortcut:
        out = out + input.to(wide)
    if scale != 1.0:
        out = out * scale
    if gelu:
        out = F.gelu(out)
    if gate is not None:
        gated = gate.shape[1]
        product = out[:, :gated] * gate.to(wide)
        out = product if gated == out.shape[1] else torch.cat([product, out[:, gated:]], 1)
    return out.to(input.dtype).contiguous(memory_format=format_of(input))


def depthwise_conv2d_input(
    grad: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: int,
    dilation: int,
    shortcut: bool = False,
) -> Tensor:
    """Transpose the convolution, and its shortcut: the gradient for an input of ``size``."""
    wide = accumulation_dtype(grad.dtype)
    settings = _settings(weight, stride, dilation)
    y, w = _one_image(grad.to(wide), weight.to(wide))
    rest = [
        full - (stride * (small - 1) + 1) for full, small in zip(size, y.shape[2:], strict=True)
    ]
    out = F.conv_transpose2d(y, w, groups=w.shape[0], output_padding=rest, **settings)
    out = out.reshape(grad.shape[0], grad.shape[1], *size)
    if shortcut:
        out = out + grad.to(wide)
    return out.to(grad.dtype).contiguous(memory_format=format_of(grad))


def depthwise_conv2d_weight(
    grad: Tensor, input: Tensor, batch: int, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    """Compare the output's gradient with the shifted input: the gradient of the weight."""
    n, c = input.shape[:2]
    wide = accumulation_dtype(input.dtype)
    shape = (batch, c, kernel_size, kernel_size)
    if n == 0 or c == 0:
        return input.new_zeros(shape)
    settings = _settings(torch.empty(shape, device="meta"), stride, dilation)
    x, y = input.to(wide), grad.to(wide)
    if batch > 1:
        x, y = (z.reshape(1, n * c, *z.shape[2:]) for z in (x, y))
    channels = x.shape[1]
    weight_size = (channels, 1, kernel_size, kernel_size)
    out: Tensor = conv2d_weight(x, weight_size, y, groups=channels, **settings)
    return out.reshape(shape).to(input.dtype)


def _one_image(map: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Turn kernels of their own for each image into those of one image with N * C channels."""
    batch, c, k, _ = weight.shape
    if batch == 0:  # no image has no kernels of its own, and a convolution needs some
        weight, batch = weight.sum(0, keepdim=True), 1
    if batch == 1:
        return map, weight.reshape(c, 1, k, k)
    return map.reshape(1, batch * c, *map.shape[2:]), weight.reshape(batch * c, 1, k, k)


def _settings(weight: Tensor, stride: int, dilation: int) -> dict[str, Any]:
    return {"stride": stride, "padding": dilation * (weight.shape[2] // 2), "dilation": dilation}
