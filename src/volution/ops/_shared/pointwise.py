"""A linear map of the channels at every pixel, and what follows it, as the device runs it fastest.

On the CPU PyTorch's convolutions can finish their own result (activation, product, sum) where no
gradient is recorded: the compiler of PyTorch uses that too. It spares a pass over the map, and
memory for one more, which costs as much again to be given by the system.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from volution.ops import _checks, _library
from volution.ops._shared.layout import is_channels_last

# What PyTorch's CPU convolutions are vectorised for; float64 ones copy to other layouts and back.
_CONVOLVED = (torch.float32, torch.bfloat16, torch.float16)
_FINISHED = (torch.float32, torch.bfloat16)
# Bytes of a map in fresh memory. The first write to each of its pages goes through the system.
_LARGE = 2**24
_FINISHES = torch.backends.mkldnn.is_available()
# Padding, stride, dilation and groups of a 1 by 1 convolution.
_STEPS: tuple[Any, ...] = ([0, 0], [1, 1], [1, 1], 1)


def pointwise(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Apply a matrix to the channels of each pixel: a 1 by 1 convolution, a linear layer.

    Args:
        input: Feature map, shape ``(N, C, H, W)``.
        weight: Shape ``(D, C)`` as of a linear layer, or ``(D, C, 1, 1)`` as of a convolution.
        bias: Shape ``(D,)``, or None.
        activation: Applied to the result: None for none, or ``"gelu"``, the exact (erf) form.
        gate: A map that then multiplies it, shape ``(N, D, H, W)``.
        residual: A map that is then added to it, shape ``(N, D, H, W)``.

    Returns:
        Tensor of shape ``(N, D, H, W)`` in the memory format of ``input``.

    Raises:
        ValueError: If ``activation`` is another.

    Example:
        >>> pointwise(torch.ones(1, 3, 2, 2), torch.ones(5, 3)).shape
        torch.Size([1, 5, 2, 2])
    """
    _checks.check_one_of("activation", activation, (None, "gelu"))
    on_cpu = input.device.type == "cpu"
    if on_cpu and _library.runs_directly(input):
        return _in_place(input, weight, bias, activation, gate, residual)
    if (on_cpu and input.dtype in _CONVOLVED) or not is_channels_last(input):
        out = F.conv2d(input, _kernel(weight), bias)
    else:
        out = F.linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    if activation == "gelu":
        out = F.gelu(out)
    if gate is not None:
        out = out * gate.to(out.dtype)  # they differ under autocast
    return out if residual is None else out + residual


def _in_place(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    gate: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """Compute :func:`pointwise` in the memory of its result; nothing is recorded."""
    kernel, other = _kernel(weight), residual if gate is None else gate
    if input.dtype not in _FINISHED or not _FINISHES:
        out = F.conv2d(input, kernel, bias)
    elif other is not None and activation is None and _joins(input, other):
        kind, factor = ("add", 1.0) if gate is None else ("mul", None)
        out = torch.ops.mkldnn._convolution_pointwise.binary(
            input, other, kernel, bias, *_STEPS, kind, factor, None, [], None
        )
        gate, residual = None, residual if kind == "mul" else None
    else:
        out = torch.ops.mkldnn._convolution_pointwise(
            input, kernel, bias, *_STEPS, activation or "none", [], "none"
        )
        activation = None
    if activation == "gelu":
        out = torch.ops.aten.gelu_(out)
    if gate is not None:
        out = out.mul_(gate)
    return out if residual is None else out.add_(residual)


def add_scaled(shortcut: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """Return ``shortcut + scale * branch``, with a scale for each channel or none.

    Where nothing is recorded it is written over ``branch``, which nobody may need afterwards.

    Example:
        >>> add_scaled(torch.ones(1, 2, 1, 1), torch.ones(1, 2, 1, 1), torch.tensor([2.0, 3.0]))
        tensor([[[[3.]],
        <BLANKLINE>
                 [[4.]]]])
    """
    if scale is None:
        return branch.add_(shortcut) if _library.runs_directly(branch) else shortcut + branch
    if _library.runs_directly(branch):
        return torch.addcmul(shortcut, branch, scale[:, None, None], out=branch)
    return torch.addcmul(shortcut, branch, scale[:, None, None])


def images_at_once(input: Tensor, channels: int) -> int:
    """Return how many images to take at a time through a layer that widens them to ``channels``.

    All of them, but where nothing is recorded and the widened maps would be larger than what
    allocators keep at hand: fresh memory from the system costs more than computing what goes in.
    """
    n, _, height, width = input.shape
    if not _library.runs_directly(input):
        return max(1, n)
    return max(1, min(n, _LARGE // (channels * height * width * input.element_size())))


def _kernel(weight: Tensor) -> Tensor:
    return weight if weight.dim() == 4 else weight[:, :, None, None]


def _joins(input: Tensor, other: Tensor) -> bool:
    """Return whether a convolution of ``input`` can take ``other`` in as it lies."""
    # It would copy a map that does not lie in one piece.
    dense = is_channels_last(other) and other.stride(3) == other.shape[1]
    return dense and is_channels_last(input) and other.dtype == input.dtype
