r"""Depthwise convolution with kernels of several sizes, and its two adjoints.

Channels are cut into slices, and each slice has kernels of its own side. The kernels of all
slices pass the dispatcher as one flat tensor; the derivative rules are those of the plain
convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from volution.ops import _checks, _library, _native
from volution.ops._shared.batching import one_by_one
from volution.ops._shared.depthwise import mixed_slices
from volution.ops._shared.layout import empty_map

_TRITON = "volution.ops._shared.depthwise.mixed_triton"


def mixed_depthwise_conv2d(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    *,
    shortcut: bool = False,
    activation: str | None = None,
) -> Tensor:
    r"""Filter consecutive slices of the channels with kernels of different sizes, in one pass.

    The same as cutting ``input`` along its channels, a depthwise convolution for each part and
    :func:`torch.cat`, without the copies:

    .. math::
        y_{n,c,i} = a\Bigl(b_c + \sum_{\delta} w_{c,\delta}\, x_{n,c,i+\delta}
                    \;[{}+ x_{n,c,i}]\Bigr),

    where the window of :math:`\delta` is as large as the kernels of the slice that :math:`c` lies
    in, with zeros outside the image.

    Args:
        input: Feature map :math:`x`, shape ``(N, C, H, W)``. Any memory format; channels-last is
            fastest.
        weights: For each slice its kernels, shape ``(C_i, 1, K_i, K_i)`` with ``K_i`` odd; the
            ``C_i`` add up to ``C``. All of the dtype and device of ``input``; under autocast all
            are cast to its dtype first.
        biases: For each slice :math:`b`, shape ``(C_i,)``, or None for none.
        shortcut: Add ``input`` itself to the sum.
        activation: :math:`a`: None for none, or ``"gelu"``, the exact (erf) form.

    Returns:
        Tensor of the shape, dtype, device and memory format of ``input``. Half precision is
        computed in float32 and rounded once.

    Raises:
        ValueError: If shapes do not fit together, or ``activation`` is another.
        TypeError: If ``input`` is not floating point, or another tensor differs in dtype or device.

    Gradients:
        For all tensors, of any order, in reverse and forward mode. What lies between the
        convolution and the result is computed again in the backward pass, not stored.

    Example:
        >>> x = torch.ones(1, 3, 5, 5)
        >>> y = mixed_depthwise_conv2d(x, [torch.ones(1, 1, 1, 1), torch.ones(2, 1, 3, 3)])
        >>> y[0, :, 2, 2].tolist()
        [1.0, 9.0, 9.0]

    References:
        Tan and Le, "MixConv: Mixed Depthwise Convolutional Kernels", BMVC 2019.
        https://arxiv.org/abs/1907.09595
    """
    _checks.check_one_of("activation", activation, (None, "gelu"))
    _checks.check_rank("input", input, "N, C, H, W")
    _check_slices(input, weights, biases)
    channels = [weight.shape[0] for weight in weights]
    sides = [weight.shape[2] for weight in weights]
    flat = torch.cat([weight.flatten() for weight in weights])
    bias = None if biases is None else torch.cat(list(biases))
    return _library.call(_CONV, input, flat, bias, channels, sides, activation == "gelu", shortcut)


def _check_slices(
    input: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None
) -> None:
    if not weights:
        raise ValueError("weights must hold the kernels of at least one slice, got none")
    for i, weight in enumerate(weights):
        _checks.check_rank(f"weights[{i}]", weight, "C_i, 1, K_i, K_i")
        side = weight.shape[2]
        if weight.shape[1] != 1 or side != weight.shape[3] or side % 2 == 0:
            raise ValueError(
                f"weights[{i}] must have shape (C_i, 1, K_i, K_i) with K_i odd, got "
                f"{tuple(weight.shape)}"
            )
    total = sum(weight.shape[0] for weight in weights)
    if total != input.shape[1]:
        raise ValueError(
            f"weights must have kernels for the C = {input.shape[1]} channels of input, got "
            f"{total} in slices of {[weight.shape[0] for weight in weights]}"
        )
    if biases is None:
        return
    if len(biases) != len(weights):
        raise ValueError(
            f"biases must have one tensor for each of the {len(weights)} slices, got {len(biases)}"
        )
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        _checks.check_rank(f"biases[{i}]", bias, "C_i")
        _checks.check_size(f"biases[{i}]", bias, (weight.shape[0],), "C_i")


def _check(
    map_name: str, map: Tensor, weight: Tensor, channels: Sequence[int], sides: Sequence[int]
) -> None:
    _checks.check_rank(map_name, map, "N, C, H, W")
    _checks.check_floating(map_name, map)
    _checks.check_same_kind("weights", weight, map_name, map)
    _checks.check_sides(map_name, *map.shape[2:])
    _check_cut(map_name, map, channels, sides)
    taps = sum(c * k * k for c, k in zip(channels, sides, strict=True))
    _checks.check_size("weight", weight, (taps,), "sum of C_i * K_i * K_i")


def _check_cut(map_name: str, map: Tensor, channels: Sequence[int], sides: Sequence[int]) -> None:
    if len(channels) != len(sides) or sum(channels) != map.shape[1]:
        raise ValueError(
            f"channels and sides must cut the {map.shape[1]} channels of {map_name}, got "
            f"{list(channels)} and {list(sides)}"
        )
    for side in sides:
        _checks.check_positive("sides", side, odd=True)


def _check_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    channels: Sequence[int],
    sides: Sequence[int],
    gelu: bool,
    shortcut: bool,
) -> None:
    _check("input", input, weight, channels, sides)
    if bias is not None:
        _checks.check_same_kind("biases", bias, "input", input)
        _checks.check_size("bias", bias, (input.shape[1],), "C")


def _check_input(
    grad: Tensor, weight: Tensor, channels: Sequence[int], sides: Sequence[int], shortcut: bool
) -> None:
    _check("grad", grad, weight, channels, sides)


def _check_weight(
    grad: Tensor, input: Tensor, channels: Sequence[int], sides: Sequence[int]
) -> None:
    _checks.check_rank("input", input, "N, C, H, W")
    _checks.check_floating("grad", grad)
    _checks.check_same_kind("input", input, "grad", grad)
    _checks.check_size("grad", grad, tuple(input.shape), "N, C, H, W")
    _checks.check_sides("input", *input.shape[2:])
    _check_cut("input", input, channels, sides)


def _fake_map(map: Tensor, *rest: Any) -> Tensor:
    return empty_map(map, tuple(map.shape))


def _fake_weight(
    grad: Tensor, input: Tensor, channels: Sequence[int], sides: Sequence[int]
) -> Tensor:
    return grad.new_empty(sum(c * k * k for c, k in zip(channels, sides, strict=True)))


def _backward_conv(
    grad: Tensor,
    needs: Sequence[bool],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    channels: Sequence[int],
    sides: Sequence[int],
    gelu: bool,
    shortcut: bool,
) -> tuple[Tensor | None, ...]:
    cut = (channels, sides)
    if gelu:
        before = _CONV(input, weight, bias, *cut, False, shortcut)
        grad = torch.ops.aten.gelu_backward(grad, before)
    return (
        _INPUT(grad, weight, *cut, shortcut) if needs[0] else None,
        _WEIGHT(grad, input, *cut) if needs[1] else None,
        grad.sum((0, 2, 3)) if bias is not None and needs[2] else None,
    )


def _backward_input(
    grad: Tensor,
    needs: Sequence[bool],
    outer: Tensor,
    weight: Tensor,
    channels: Sequence[int],
    sides: Sequence[int],
    shortcut: bool,
) -> tuple[Tensor | None, ...]:
    cut = (channels, sides)
    return (
        _CONV(grad, weight, None, *cut, False, shortcut) if needs[0] else None,
        _WEIGHT(outer, grad, *cut) if needs[1] else None,
    )


def _backward_weight(
    grad: Tensor,
    needs: Sequence[bool],
    outer: Tensor,
    input: Tensor,
    channels: Sequence[int],
    sides: Sequence[int],
) -> tuple[Tensor | None, ...]:
    cut = (channels, sides)
    return (
        _CONV(input, grad, None, *cut, False, False) if needs[0] else None,
        _INPUT(outer, grad, *cut, False) if needs[1] else None,
    )


def _tangents_conv(
    moved: Sequence[Tensor | None],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    channels: Sequence[int],
    sides: Sequence[int],
    gelu: bool,
    shortcut: bool,
) -> list[Tensor]:
    cut = (channels, sides)
    d_input, d_weight, d_bias = moved
    parts = []
    if d_input is not None:
        parts.append(_CONV(d_input, weight, None, *cut, False, shortcut))
    if d_weight is not None:
        parts.append(_CONV(input, d_weight, None, *cut, False, False))
    if d_bias is not None:
        parts.append(d_bias[:, None, None].expand(input.shape))
    if parts and gelu:
        before = _CONV(input, weight, bias, *cut, False, shortcut)
        parts = [torch.ops.aten.gelu_backward(sum(parts[1:], parts[0]), before)]
    return parts


def _tangents_input(
    moved: Sequence[Tensor | None],
    grad: Tensor,
    weight: Tensor,
    channels: Sequence[int],
    sides: Sequence[int],
    shortcut: bool,
) -> list[Tensor]:
    cut = (channels, sides)
    d_grad, d_weight = moved
    parts = [] if d_grad is None else [_INPUT(d_grad, weight, *cut, shortcut)]
    return parts if d_weight is None else [*parts, _INPUT(grad, d_weight, *cut, False)]


def _flops(channels: Sequence[int], sides: Sequence[int], map: Sequence[int]) -> int:
    """Count a multiplication and an addition per channel, tap and pixel."""
    taps = sum(c * k * k for c, k in zip(channels, sides, strict=True))
    return 2 * map[0] * map[2] * map[3] * taps


def _flops_conv(map: Any, weight: Any, bias: Any, cut: Any, sides: Any, *_: Any, **__: Any) -> int:
    return _flops(cut, sides, map)


def _flops_adjoint(map: Any, other: Any, cut: Any, sides: Any, *_: Any, **__: Any) -> int:
    return _flops(cut, sides, map)


_CONV = _library.register(
    "mixed_depthwise_conv2d(Tensor input, Tensor weight, Tensor? bias, int[] channels, "
    "int[] sides, bool gelu, bool shortcut) -> Tensor",
    check=_check_conv,
    reference=mixed_slices.reference_conv,
    native=mixed_slices.native_conv,
    triton_module=_TRITON,
    native_dtypes=_native.DTYPES,
    fake=_fake_map,
    backward=_backward_conv,
    flops=_flops_conv,
    tensors=3,
    tangents=_tangents_conv,
    vmap=one_by_one("mixed_depthwise_conv2d"),
)
_INPUT = _library.register(
    "mixed_depthwise_conv2d_input(Tensor grad, Tensor weight, int[] channels, int[] sides, "
    "bool shortcut) -> Tensor",
    check=_check_input,
    reference=mixed_slices.reference_input,
    native=mixed_slices.native_input,
    triton_module=_TRITON,
    native_dtypes=_native.DTYPES,
    fake=_fake_map,
    backward=_backward_input,
    flops=_flops_adjoint,
    tangents=_tangents_input,
    vmap=one_by_one("mixed_depthwise_conv2d_input"),
)
_WEIGHT = _library.register(
    "mixed_depthwise_conv2d_weight(Tensor grad, Tensor input, int[] channels, int[] sides) "
    "-> Tensor",
    check=_check_weight,
    reference=mixed_slices.reference_weight,
    native=mixed_slices.native_weight,
    triton_module=_TRITON,
    native_dtypes=_native.DTYPES,
    fake=_fake_weight,
    backward=_backward_weight,
    flops=_flops_adjoint,
    vmap=one_by_one("mixed_depthwise_conv2d_weight"),
)
