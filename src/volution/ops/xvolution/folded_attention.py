"""The attention of a folded X-volution: what is summed, and each pixel's weights for it.

All of these return ``(values, kernel)``. What scales the result, the gain of the attention's norm
and where possible the map that makes values, is folded into whatever stands last.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from volution.ops.xvolution.attention import PSSA, WindowAttention
from volution.ops.xvolution.op import pssa_kernel
from volution.ops.xvolution.projection import apply_value, every
from volution.ops.xvolution.settings import Settings


class FoldedPSSA(nn.Module):
    """Queries, keys and values in as few convolutions as the stride and the groups allow.

    Args:
        pssa: The attention; it is left as it is.
        gain: Factor of each output channel, folded into the values.
        with_values: Make values; otherwise they are the input itself.

    Shape:
        ``(N, C_in, H, W)`` to values ``(N, C_out, H, W)`` and kernel ``(N, heads, D, h, w)``.
    """

    def __init__(self, pssa: PSSA, gain: Tensor, *, with_values: bool) -> None:
        super().__init__()
        self.heads, self.stride = pssa.heads, pssa.stride
        self.offsets, self.normalize = pssa.offsets, pssa.normalize
        self.makes_values = with_values
        parts = [_weights(pssa.key, None)]
        query = _weights(pssa.query, torch.tensor(pssa.scale, dtype=torch.float64))
        if self.stride == 1:
            parts.insert(0, query)
        value = _weights(pssa.value, gain)
        dense = pssa.value.groups == 1
        if with_values and dense:
            parts.append(value)
        like = pssa.key.weight
        self.widths = [len(weight) for weight, _ in parts]
        self.shared = _pointwise(parts, 1, like)
        self.query = None if self.stride == 1 else _pointwise([query], 1, like)
        self.value = None
        if with_values and not dense:
            self.value = _pointwise([(value[0], None)], pssa.value.groups, like)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        parts = self.shared(input).split(self.widths, 1)
        if self.query is None:
            q, k = parts[0], parts[1]
        else:
            q, k = self.query(every(input, self.stride)), parts[0]
        kernel = pssa_kernel(q, k, self.heads, self.offsets, self.stride, 1.0, self.normalize)
        if self.value is not None:
            return self.value(input), kernel
        return (parts[-1] if self.makes_values else input), kernel

    def matrix(self) -> Tensor | None:
        """Return the map that makes values, ``(C_out, C_in / groups)``; None for an identity."""
        if self.value is not None:
            return self.value.weight.flatten(1)
        if not self.makes_values:
            return None
        return self.shared.weight[-self.widths[-1] :].flatten(1)

    def extra_repr(self) -> str:
        taps = len(self.offsets) // 2
        return f"heads={self.heads}, taps={taps}, normalize={self.normalize!r}"


class FoldedWindow(nn.Module):
    """Any other attention over a window, whose scale stays outside.

    Args:
        branch: The attention, whose own norms are folded already; it becomes part of this.
        with_values: Make values; otherwise they are the input itself.

    Shape:
        As :class:`FoldedPSSA`.
    """

    def __init__(self, branch: nn.Module, *, with_values: bool) -> None:
        super().__init__()
        self.branch = branch
        self.makes_values = with_values
        self.offsets = cast(WindowAttention, branch).offsets

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        branch = cast(WindowAttention, self.branch)
        values = apply_value(branch.value, input) if self.makes_values else input
        return values, branch.kernel(input)

    def matrix(self) -> Tensor | None:
        """Return the map that makes values, ``(C_out, C_in / groups)``; None for an identity."""
        value = cast(WindowAttention, self.branch).value
        if not self.makes_values or isinstance(value, nn.Identity):
            return None
        return cast(Tensor, value.weight).flatten(1)


def fold_attention(
    settings: Settings, attention: nn.Module, gain: Tensor
) -> tuple[FoldedPSSA | FoldedWindow, Tensor | None]:
    """Return an attention without norms, and the scale of its result that is still to be applied.

    Args:
        settings: Those of the X-volution.
        attention: Its attention branch, in evaluation; it is left as it is.
        gain: Scale of each channel by the norm after it.

    Raises:
        ValueError: If the attention does not fold.
    """
    _check_folds(settings, attention)
    value = cast(WindowAttention, attention).value
    scale: Tensor | None = gain
    if settings.depthwise and isinstance(value, nn.Conv2d):
        scale = gain * value.weight.detach().double().flatten()
    # By exact type: a subclass may compute something else.
    if type(attention) is PSSA:
        folded = FoldedPSSA(attention, gain, with_values=not settings.depthwise)
        return folded, scale if settings.depthwise else None
    fuse = getattr(attention, "fuse", None)
    branch = copy.deepcopy(attention) if fuse is None else fuse()
    return FoldedWindow(branch, with_values=not settings.depthwise), scale


def _check_folds(settings: Settings, attention: nn.Module) -> None:
    remains = "fuse_convolution() folds the convolution and its norm, and leaves the attention"
    if settings.attention == "sa":
        raise ValueError(
            f"attention='sa' does not fold: it compares every pixel with all others, which is no "
            f"window that a convolution could have; {remains} and its norm as branches"
        )
    if not isinstance(attention, WindowAttention):
        raise ValueError(
            f"an attention folds if it has offsets, value and kernel() as volution.ops.PSSA has, "
            f"got {type(attention).__name__}; {remains} and its norm as branches"
        )
    value: Any = attention.value
    if isinstance(value, nn.Identity):
        fits = settings.in_channels == settings.out_channels
    else:
        fits = isinstance(value, nn.Conv2d) and value.bias is None
        fits = fits and (value.kernel_size, value.groups) == ((1, 1), settings.groups)
    if not fits:
        raise ValueError(
            f"the value of an attention that folds must be an identity, or a 1 by 1 convolution "
            f"without a bias in {settings.groups} groups like the layer's convolution, got {value}"
        )


def _weights(conv: nn.Conv2d, gain: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias in float64, each channel scaled."""
    weight = conv.weight.detach().double()
    bias = None if conv.bias is None else conv.bias.detach().double()
    if gain is None:
        return weight, bias
    gain = gain.to(weight.device)
    return weight * gain.reshape(-1, 1, 1, 1), None if bias is None else bias * gain


def _pointwise(parts: list[tuple[Tensor, Tensor | None]], groups: int, like: Tensor) -> nn.Conv2d:
    """Return one 1 by 1 convolution whose output holds those of several, one after the other."""
    weight = torch.cat([weight for weight, _ in parts])
    biased = any(bias is not None for _, bias in parts)
    made = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        1,
        groups=groups,
        bias=biased,
        device="meta",
        dtype=like.dtype,
    )
    made.weight = nn.Parameter(weight.to(like.dtype))
    if biased:
        zero = [weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in parts]
        made.bias = nn.Parameter(torch.cat(zero).to(like.dtype))
    return made
