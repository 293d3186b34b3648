"""BatchNorm in evaluation: a scale and a shift for each channel, in the memory of the map."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from volution.ops import _library
from volution.ops._shared.folding import batch_norm_affine, is_fixed_affine

# One call in traced graphs, so that symbolic tracing does not stop at its choices.
torch.fx.wrap("apply_fixed")

Fixed: TypeAlias = tuple[Any, ...]
"""What a norm in evaluation does to each channel: nothing, scale and shift, or the mean, variance,
weight, bias and epsilon of a BatchNorm."""


class ChannelAffine(nn.Module):
    """Scale and shift each channel: what is left of a BatchNorm that no convolution takes in.

    Args:
        norm: The norm to replace, in evaluation mode.

    Shape:
        ``(N, C, H, W)`` to the same. Where nothing is recorded the input is overwritten.

    Raises:
        ValueError: If the norm is in training mode.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        like: Any = norm.running_mean if norm.weight is None else norm.weight
        learned = getattr(norm.weight, "requires_grad", False)
        scale, shift = (x.to(like.device, like.dtype) for x in batch_norm_affine(norm))
        self.weight = nn.Parameter(scale, learned)
        self.bias = nn.Parameter(shift, learned)

    def forward(self, input: Tensor) -> Tensor:
        return scale_and_shift(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}"


def fixed(norm: nn.Module) -> Fixed | None:
    """Return what a norm does to each channel, or None if it depends on the map, or is unknown."""
    if isinstance(norm, nn.Identity):
        return ()
    if isinstance(norm, ChannelAffine):
        return norm.weight, norm.bias
    if norm.training or not is_fixed_affine(norm):
        return None
    return norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps


def normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """Return ``norm(x)``, written over ``x`` where that is the same and nothing is recorded."""
    known = fixed(norm)
    return norm(x) if known is None else apply_fixed(x, known)


def apply_fixed(x: Tensor, norm: Fixed) -> Tensor:
    """Apply what :func:`fixed` returned, over ``x`` where nothing is recorded."""
    if len(norm) == 0:
        return x
    if len(norm) == 2:
        return scale_and_shift(x, *norm)
    mean, variance, weight, bias, eps = norm
    # Rounded to half precision, scale and shift would be less exact than PyTorch's.
    if x.dtype not in (torch.float32, torch.float64) or not _library.runs_directly(x):
        return nn.functional.batch_norm(x, mean, variance, weight, bias, eps=eps)
    scale = (variance + eps).rsqrt_()
    if weight is not None:
        scale.mul_(weight)
    shift = torch.addcmul(torch.zeros_like(mean) if bias is None else bias, mean, scale, value=-1)
    return scale_and_shift(x, scale, shift)


def scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return ``scale * x + shift`` of each channel, over ``x`` where nothing is recorded.

    Example:
        >>> scale_and_shift(torch.ones(1, 2, 1, 1), torch.tensor([2.0, 3.0]), torch.ones(2))
        tensor([[[[3.]],
        <BLANKLINE>
                 [[4.]]]])
    """
    scale, shift = scale[:, None, None], shift[:, None, None]
    if _library.runs_directly(x):
        return torch.addcmul(shift, x, scale, out=x)
    return torch.addcmul(shift, x, scale)
