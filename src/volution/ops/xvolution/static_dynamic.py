r"""Convolution with a static and a dynamic kernel for each pixel, in one pass over the map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from volution.ops import _checks, _library, _native
from volution.ops._shared.batching import one_by_one
from volution.ops._shared.depthwise import depthwise_conv2d
from volution.ops._shared.depthwise import reference as depthwise_reference
from volution.ops._shared.layout import empty_map, strided
from volution.ops._shared.neighbourhood import gather, reference
from volution.ops.xvolution import static_dynamic_native as native
from volution.ops.xvolution.reference import in_parts

_TRITON = "volution.ops.xvolution.static_dynamic_triton"


def static_dynamic_conv2d(
    input: Tensor,
    kernel: Tensor,
    offsets: Sequence[int],
    *,
    weight: Tensor | None = None,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    stride: int = 1,
    dilation: int = 1,
) -> Tensor:
    r"""Sum each pixel's neighbours with that pixel's own weights and with fixed ones, at once.

    With a dynamic kernel :math:`k` on the offsets :math:`D_a`, a depthwise kernel :math:`w` on a
    window :math:`D_c`, stride :math:`s` and zeros outside the image,

    .. math::
        y_{n,c,i} = r_{n,c,i} + b_c
                    + \sum_{\delta \in D_a \cup D_c} \bigl(w_{c,\delta}
                    + \sigma_c\, k_{n,\,g(c),\,\delta,\,i}\bigr)\, x_{n,\,c,\,s i+\delta},
        \qquad g(c) = \lfloor cG/C \rfloor ,

    where either kernel is zero outside its own window. This is a folded X-volution of depthwise
    form; without ``weight`` it is :func:`volution.ops.gather` with what surrounds it.

    Args:
        input: Feature map :math:`x`, shape ``(N, C, H, W)``. Any memory format; channels-last is
            fastest.
        kernel: Weights :math:`k` of every pixel's own, shape
            ``(N, G, D, ceil(H / stride), ceil(W / stride))``, where ``G`` divides ``C``. Like all
            tensors here of the dtype and device of ``input``; under autocast all are cast.
        offsets: Row and column of each of the ``D`` taps of ``kernel``, flat, in input pixels;
            see :func:`volution.ops.window_offsets`.
        weight: Fixed weights :math:`w`, shape ``(C, 1, K, K)`` with ``K`` odd.
        scale: Factor :math:`\sigma` of the dynamic kernel, shape ``(C,)``; 1 if it is left out.
        bias: :math:`b`, shape ``(C,)``.
        residual: A map :math:`r` that is added, of the shape of the result.
        stride: Step between output pixels, in input pixels. At least 1.
        dilation: Step between the taps of ``weight``, in input pixels. At least 1.

    Returns:
        Tensor of shape ``(N, C, ceil(H / stride), ceil(W / stride))``, in the dtype, device and
        memory format of ``input``. Half precision is summed in float32 and rounded once.

    Raises:
        ValueError: If shapes, ``offsets``, ``stride`` or ``dilation`` do not fit together.
        TypeError: If ``input`` is not floating point, or another tensor differs in dtype or device.

    Gradients:
        For all tensors, of any order, in reverse and forward mode.

    Example:
        >>> x, own = torch.ones(1, 2, 5, 5), torch.ones(1, 1, 9, 5, 5)
        >>> window = (-1, -1, -1, 0, -1, 1, 0, -1, 0, 0, 0, 1, 1, -1, 1, 0, 1, 1)
        >>> scale = torch.tensor([0.0, 2.0])
        >>> y = static_dynamic_conv2d(x, own, window, weight=torch.ones(2, 1, 3, 3), scale=scale)
        >>> y[0, :, 2, 2].tolist()
        [9.0, 27.0]
    """
    if weight is not None:
        _checks.check_rank("weight", weight, "C, 1, K, K")
        if weight.shape[1] == 1 and weight.shape[0] == input.shape[1]:
            weight = weight.transpose(0, 1)
    return _library.call(
        _OPERATOR, input, kernel, weight, scale, bias, residual, offsets, stride, dilation
    )


def _check(
    input: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    offsets: Sequence[int],
    stride: int,
    dilation: int,
) -> None:
    _checks.check_rank("input", input, "N, C, H, W")
    _checks.check_rank("kernel", kernel, "N, G, D, h, w")
    _checks.check_floating("input", input)
    _checks.check_positive("stride", stride)
    _checks.check_positive("dilation", dilation)
    n, c, height, width = input.shape
    _checks.check_sides("input", height, width)
    _, groups, taps, _, _ = kernel.shape
    if len(offsets) != 2 * taps or not taps:
        raise ValueError(
            f"offsets must hold a row and a column for each of the {taps} taps of kernel, and "
            f"there must be one, got {len(offsets)} numbers"
        )
    _checks.check_divides("the groups of kernel", groups, "the channels of input", c)
    size = (strided(height, stride), strided(width, stride))
    named = "N, G, D, ceil(H/stride), ceil(W/stride)"
    _checks.check_size("kernel", kernel, (n, groups, taps, *size), named)
    _checks.check_same_kind("kernel", kernel, "input", input)
    if weight is not None:
        side = weight.shape[2]
        if weight.dim() != 4 or side % 2 == 0:
            raise ValueError(
                f"weight must have shape (C, 1, K, K) with K odd, got K by K = "
                f"{weight.shape[2]} by {weight.shape[3]}"
            )
        _checks.check_size("weight", weight, (1, c, side, side), "1, C, K, K")
    for name, vector in (("scale", scale), ("bias", bias)):
        if vector is not None:
            _checks.check_rank(name, vector, "C")
            _checks.check_size(name, vector, (c,), "C")
    if residual is not None:
        _checks.check_rank("residual", residual, "N, C, h, w")
        _checks.check_size("residual", residual, (n, c, *size), "N, C, h, w")
    rest = {"weight": weight, "scale": scale, "bias": bias, "residual": residual}
    for name, tensor in rest.items():
        if tensor is not None:
            _checks.check_same_kind(name, tensor, "input", input)


def _reference(*args: Any) -> Tensor:
    return in_parts(reference.gather, depthwise_reference.depthwise_conv2d, *args)


def _fake(input: Tensor, kernel: Tensor, *rest: Any) -> Tensor:
    return empty_map(input, (*input.shape[:2], *kernel.shape[3:]))


def _scaled(map: Tensor, scale: Tensor | None) -> Tensor:
    return map if scale is None else map * scale[:, None, None]


def _backward(
    grad: Tensor,
    needs: Sequence[bool],
    input: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    offsets: Sequence[int],
    stride: int,
    dilation: int,
) -> tuple[Tensor | None, ...]:
    ops, size = torch.ops.volution, input.shape[2:]
    grads: list[Tensor | None] = [None] * 6
    inner = _scaled(grad, scale)
    if needs[0]:
        grads[0] = ops.scatter(inner, kernel, offsets, size, stride)
        if weight is not None:
            grads[0] = grads[0] + ops.depthwise_conv2d_input(grad, weight, size, stride, dilation)
    if needs[1]:
        grads[1] = ops.correlate(inner, input, offsets, kernel.shape[1], stride)
    if weight is not None and needs[2]:
        side = weight.shape[2]
        grads[2] = ops.depthwise_conv2d_weight(grad, input, 1, side, stride, dilation)
    if scale is not None and needs[3]:
        grads[3] = (grad * gather(input, kernel, offsets, stride=stride)).sum((0, 2, 3))
    if bias is not None and needs[4]:
        grads[4] = grad.sum((0, 2, 3))
    if residual is not None and needs[5]:
        grads[5] = grad
    return tuple(grads)


def _tangents(
    moved: Sequence[Tensor | None],
    input: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    offsets: Sequence[int],
    stride: int,
    dilation: int,
) -> list[Tensor]:
    d_input, d_kernel, d_weight, d_scale, d_bias, d_residual = moved
    steps = (offsets, stride, dilation)
    parts = []
    if d_input is not None:
        parts.append(_OPERATOR(d_input, kernel, weight, scale, None, None, *steps))
    if d_kernel is not None:
        parts.append(_OPERATOR(input, d_kernel, None, scale, None, None, *steps))
    if d_weight is not None:
        kernels = d_weight.transpose(0, 1)
        parts.append(depthwise_conv2d(input, kernels, stride=stride, dilation=dilation))
    if d_scale is not None:
        parts.append(_scaled(gather(input, kernel, offsets, stride=stride), d_scale))
    if d_bias is not None:
        shape = (*input.shape[:2], *kernel.shape[3:])
        parts.append(d_bias[:, None, None].expand(shape))
    return parts if d_residual is None else [*parts, d_residual]


def _flops(input: Sequence[int], kernel: Sequence[int], weight: Any, *_: Any, **__: Any) -> int:
    """Count a multiplication and an addition per channel, tap and output pixel."""
    taps = kernel[2] + (0 if weight is None else weight[2] * weight[3])
    return 2 * input[0] * input[1] * taps * kernel[3] * kernel[4]


_OPERATOR: Callable[..., Tensor] = _library.register(
    "static_dynamic_conv2d(Tensor input, Tensor kernel, Tensor? weight, Tensor? scale, "
    "Tensor? bias, Tensor? residual, int[] offsets, int stride, int dilation) -> Tensor",
    check=_check,
    reference=_reference,
    native=native.static_dynamic_conv2d,
    triton_module=_TRITON,
    native_dtypes=_native.DTYPES,
    fake=_fake,
    backward=_backward,
    flops=_flops,
    tensors=6,
    tangents=_tangents,
    vmap=one_by_one("static_dynamic_conv2d"),
)
