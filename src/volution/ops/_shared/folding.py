"""Folding: what scales and shifts each channel, into the layer beside it.

A layer's ``fuse()`` returns its replacement, a module that computes the same with fewer passes;
:meth:`volution.models.RedNet.fuse` and timm's ``reparameterize_model`` put it in place. These
functions are what such methods are made of. All of them compute in float64, return copies, and
keep dtype, device and memory format of the layer they change.
"""

from __future__ import annotations

import copy
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from volution.ops._shared.depthwise import DepthwiseConv2d

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def is_fixed_affine(norm: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Return whether a norm in evaluation is a fixed scale and shift of each channel."""
    # By exact type: subclasses, timm's among them, may have an activation inside.
    return (
        type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm)
        and getattr(norm, "running_mean", None) is not None
    )


def batch_norm_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a BatchNorm in evaluation, in float64.

    Raises:
        ValueError: If it is in training, where it has none: it normalises by its batch.
    """
    if norm.training:
        raise ValueError(
            "fuse() needs BatchNorm in evaluation mode, got one in training mode, which "
            "normalises by its batch; call eval() first"
        )
    if norm.running_var is None or norm.running_mean is None:
        raise ValueError("fuse() needs BatchNorm with running statistics, got one without")
    variance, mean = _exact(norm.running_var), _exact(norm.running_mean)
    scale = (variance + norm.eps).rsqrt()
    # Each of the two may be missing, which torch's annotations do not say.
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if weight is not None:
        scale = scale * _exact(weight)
    shift = -mean * scale
    if bias is not None:
        shift = shift + _exact(bias)
    return scale, shift


def fold_batch_norm(conv: nn.Module, norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Fold a BatchNorm into the convolution before it.

    Args:
        conv: Its output is all that the norm sees.
        norm: The norm, in evaluation mode.

    Returns:
        A new convolution and an identity; both arguments themselves where nothing can be folded:
        another norm, another layer, or an activation between the two.

    Raises:
        ValueError: If the BatchNorm is in training mode.

    Example:
        >>> conv, norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8).eval()
        >>> fold_batch_norm(conv, norm)
        (Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1)), Identity())
    """
    active = isinstance(conv, DepthwiseConv2d) and conv.activation is not None
    if not isinstance(conv, nn.Conv2d) or active or not is_fixed_affine(norm):
        return conv, norm
    return with_affine_output(conv, *batch_norm_affine(norm)), nn.Identity()


def fold_batch_norm_before(norm: nn.Module, conv: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Fold a BatchNorm into the unpadded convolution after it.

    Padding would be zeros where the folded layer needs the norm's shift, so a padded convolution
    stays as it is.

    Args:
        norm: The norm, in evaluation mode; only the convolution sees its output.
        conv: The convolution.

    Returns:
        An identity and a new convolution; both arguments themselves where nothing can be folded.

    Raises:
        ValueError: If the BatchNorm is in training mode.

    Example:
        >>> fold_batch_norm_before(nn.BatchNorm2d(8).eval(), nn.Conv2d(8, 4, 1))
        (Identity(), Conv2d(8, 4, kernel_size=(1, 1), stride=(1, 1)))
        >>> norm = nn.BatchNorm2d(8).eval()
        >>> fold_batch_norm_before(norm, nn.Conv2d(8, 4, 3, padding=1))[0] is norm
        True
    """
    if not isinstance(conv, nn.Conv2d) or not _unpadded(conv) or not is_fixed_affine(norm):
        return norm, conv
    return nn.Identity(), with_affine_input(conv, *batch_norm_affine(norm))


def fold_child_norm(module: nn.Module, conv: str, norm: str) -> None:
    """Fold a module's child ``norm`` into its child ``conv``, in place, where it can be folded."""
    pair = fold_batch_norm(module.get_submodule(conv), module.get_submodule(norm))
    for name, child in zip((conv, norm), pair, strict=True):
        setattr(module, name, child)


def with_affine_output(layer: Layer, scale: Tensor, shift: Tensor | None = None) -> Layer:
    """Return the layer followed by ``scale * y + shift`` of each channel, as one layer.

    Args:
        layer: A convolution or a linear layer, with or without a bias.
        scale: ``(C_out,)``.
        shift: ``(C_out,)``, or None for none.
    """
    weight = _exact(layer.weight)
    rows = _exact(scale).reshape(-1, *[1] * (weight.dim() - 1))
    bias = None if layer.bias is None else _exact(layer.bias) * _exact(scale)
    if shift is not None:
        bias = _exact(shift) if bias is None else bias + _exact(shift)
    return _with_parameters(layer, weight * rows, bias)


def with_affine_input(layer: Layer, scale: Tensor, shift: Tensor | None = None) -> Layer:
    """Return the layer fed with ``scale * x + shift`` of each channel, as one layer.

    Args:
        layer: A linear layer, or a convolution that does not pad where ``shift`` is given.
        scale: ``(C_in,)``.
        shift: ``(C_in,)``, or None for none.

    Raises:
        ValueError: If a shift would meet padding.
    """
    if shift is not None and isinstance(layer, nn.Conv2d) and not _unpadded(layer):
        raise ValueError(
            f"a shift folds only into a convolution without padding, got {layer}; fold it into "
            f"the layer before the norm, or keep the norm"
        )
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    weight = _exact(layer.weight)
    # (groups, C_out / groups, C_in / groups, taps): each group has its own input channels.
    split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    bias = None if layer.bias is None else _exact(layer.bias)
    if shift is not None:
        moved = (split * _exact(shift).reshape(groups, 1, -1, 1)).sum((2, 3)).flatten()
        bias = moved if bias is None else bias + moved
    scaled = split * _exact(scale).reshape(groups, 1, -1, 1)
    return _with_parameters(layer, scaled.reshape(weight.shape), bias)


def _unpadded(conv: nn.Conv2d) -> bool:
    return conv.padding == "valid" or not any(conv._reversed_padding_repeated_twice)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().double()


@torch.no_grad()
def _with_parameters(layer: Layer, weight: Tensor, bias: Tensor | None) -> Layer:
    out = copy.deepcopy(layer)
    out.weight.copy_(weight)
    if bias is not None:
        like = out.weight
        out.bias = nn.Parameter(bias.to(like.device, like.dtype), like.requires_grad)
    return out
