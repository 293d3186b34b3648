"""The convolution that an X-volution is at one pixel, as an array."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from volution.ops._shared.neighbourhood import window_offsets


class EffectiveKernel(NamedTuple):
    """The convolution that an X-volution is at one pixel; another one for each image.

    With the patch ``p`` of the pixel's neighbours at ``offsets``, zero outside the image, the
    output is ``bias[c] + (kernel[n, c] * p[n, the channels of c's group]).sum()``.

    Args:
        kernel: ``(N, C_out, C_in / groups, D)``.
        bias: ``(C_out,)``.
        offsets: Row and column of each of the ``D`` taps, flat, from the pixel ``stride * i``.
    """

    kernel: Tensor
    bias: Tensor
    offsets: tuple[int, ...]


def at_pixel(kernel: Tensor, pixel: tuple[int, int], channels: int) -> Tensor:
    """Return each channel's weights at a pixel, ``(N, channels, D)``.

    Args:
        kernel: Weights of all pixels, ``(N, heads, D, h, w)``.
        pixel: Row and column of the output.
        channels: Channels of the output.

    Raises:
        ValueError: If the output has no such pixel.
    """
    _check_pixel(pixel, kernel.shape[3], kernel.shape[4])
    heads = kernel.shape[1]
    return kernel[..., pixel[0], pixel[1]].repeat_interleave(channels // heads, 1)


def joined(
    fixed: Tensor, own: Tensor, bias: Tensor, dilation: int, offsets: tuple[int, ...]
) -> EffectiveKernel:
    """Sum a fixed kernel and one of the pixel's own over the union of their offsets.

    Args:
        fixed: ``(C_out, C_in / groups, K, K)`` on a window.
        own: ``(N, C_out, C_in / groups, D)`` on ``offsets``.
        bias: ``(C_out,)``.
        dilation: Step between the taps of ``fixed``.
        offsets: Those of ``own``, flat.
    """
    window = _pairs(window_offsets(fixed.shape[-1], dilation))
    places = {pair: place for place, pair in enumerate(dict.fromkeys(window + _pairs(offsets)))}
    whole = own.new_zeros(*own.shape[:3], len(places))
    whole[..., : len(window)] = fixed.flatten(2)
    taps = torch.tensor([places[pair] for pair in _pairs(offsets)], device=own.device)
    whole = whole.index_add(3, taps, own)
    return EffectiveKernel(whole, bias, tuple(step for pair in places for step in pair))


def conv_kernel(conv: nn.Conv2d, input: Tensor, pixel: tuple[int, int]) -> EffectiveKernel:
    """Return the kernel of a plain convolution: the same everywhere."""
    step = conv.stride[0]
    _check_pixel(pixel, -(-input.shape[2] // step), -(-input.shape[3] // step))
    kernel = conv.weight.flatten(2).expand(input.shape[0], -1, -1, -1)
    bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
    return EffectiveKernel(kernel, bias, window_offsets(conv.kernel_size[0], conv.dilation[0]))


def identity_matrix(channels: int, groups: int, like: Tensor) -> Tensor:
    """Return the weights of a grouped linear map that changes nothing."""
    eye = torch.eye(channels // groups, dtype=like.dtype, device=like.device)
    return eye.repeat(groups, 1)


def _pairs(offsets: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(zip(offsets[0::2], offsets[1::2], strict=True))


def _check_pixel(pixel: tuple[int, int], height: int, width: int) -> None:
    if not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
        raise ValueError(
            f"pixel must be a row and a column of the {height} by {width} output, got {pixel}"
        )
