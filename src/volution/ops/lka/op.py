"""The large-kernel attention function: two depthwise convolutions, a pointwise one, a gate."""

from __future__ import annotations

from torch import Tensor

from volution.ops import _checks, _library
from volution.ops._shared.depthwise import depthwise_conv2d
from volution.ops._shared.pointwise import pointwise


def lka2d(
    input: Tensor,
    local_weight: Tensor,
    local_bias: Tensor | None,
    dilated_weight: Tensor,
    dilated_bias: Tensor | None,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    *,
    dilation: int = 3,
) -> Tensor:
    r"""Multiply a map with what a large, decomposed convolution makes of it.

    A large depthwise kernel is nearly a small one, :math:`w`, followed by a small dilated one,
    :math:`v`, which spreads copies of it. With a matrix :math:`P` that mixes the channels, odd
    kernels, dilation :math:`d` and zeros outside the image,

    .. math::
        z_{c,i} = b_c + \sum_u w_{c,u}\, x_{c,\,i+u}, \qquad
        t_{c,i} = b'_c + \sum_u v_{c,u}\, z_{c,\,i+du}, \qquad
        y_{c,i} = x_{c,i} \Bigl(b''_c + \sum_k P_{ck}\, t_{k,i}\Bigr).

    The attention is a plain number of any sign and size: no sigmoid, no softmax.

    Args:
        input: Feature map :math:`x`, shape ``(N, C, H, W)``. Any memory format; channels-last is
            fastest.
        local_weight: :math:`w`, shape ``(C, 1, K, K)`` with ``K`` odd. Like all tensors here of
            the dtype and device of ``input``; under autocast all are cast to its dtype.
        local_bias: :math:`b`, shape ``(C,)``, or None.
        dilated_weight: :math:`v`, shape ``(C, 1, L, L)`` with ``L`` odd.
        dilated_bias: :math:`b'`, shape ``(C,)``, or None.
        pointwise_weight: :math:`P`, shape ``(C, C, 1, 1)``.
        pointwise_bias: :math:`b''`, shape ``(C,)``, or None.
        dilation: Step :math:`d` between the taps of ``dilated_weight``, in pixels. At least 1.
            :class:`LKA` takes ``K = 2 * dilation - 1``, as the paper.

    Returns:
        Tensor of the shape, dtype and memory format of ``input``.

    Raises:
        ValueError: If a shape or ``dilation`` breaks a rule above.
        TypeError: If ``input`` is not floating point, or another tensor differs in dtype or device.

    Gradients:
        For all tensors, of any order, in reverse and forward mode. Where none is recorded, the
        product takes no pass and no memory of its own.

    Example:
        >>> import torch
        >>> x, none = torch.full((1, 1, 7, 7), 2.0), None
        >>> box, one = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 1, 1)
        >>> y = lka2d(x, box, none, box, none, one, none, dilation=2)
        >>> y[0, 0, 3, 3].item()  # 2 times 9 sums of 9 twos
        324.0

    References:
        Guo et al., "Visual Attention Network", 2022. https://arxiv.org/abs/2202.09741
    """
    biases = (local_bias, dilated_bias, pointwise_bias)
    _check(input, local_weight, dilated_weight, pointwise_weight, biases)
    near = depthwise_conv2d(input, local_weight, local_bias)
    far = depthwise_conv2d(near, dilated_weight, dilated_bias, dilation=dilation)
    return pointwise(far, pointwise_weight, pointwise_bias, gate=input)


def _check(
    input: Tensor,
    local_weight: Tensor,
    dilated_weight: Tensor,
    pointwise_weight: Tensor,
    biases: tuple[Tensor | None, ...],
) -> None:
    _checks.check_rank("input", input, "N, C, H, W")
    _checks.check_floating("input", input)
    channels = input.shape[1]
    for name, weight in (("local_weight", local_weight), ("dilated_weight", dilated_weight)):
        _checks.check_rank(name, weight, "C, 1, K, K")
        rows, columns = weight.shape[2:]
        if rows != columns or rows % 2 == 0:
            raise ValueError(
                f"{name} must be square with an odd side, shape (C, 1, K, K), got K by K = "
                f"{rows} by {columns}"
            )
        _checks.check_size(name, weight, (channels, 1, rows, rows), "C, 1, K, K")
    expected = (channels, channels, 1, 1)
    _checks.check_rank("pointwise_weight", pointwise_weight, "C, C, 1, 1")
    _checks.check_size("pointwise_weight", pointwise_weight, expected, "C, C, 1, 1")
    names = ("local_bias", "dilated_bias", "pointwise_bias")
    given = {name: bias for name, bias in zip(names, biases, strict=True) if bias is not None}
    for name, bias in given.items():
        _checks.check_rank(name, bias, "C")
        _checks.check_size(name, bias, (channels,), "C")
    # Under autocast the tensors may differ: each pass casts its own.
    if not _library.autocasts(input.device.type):
        given |= {
            "local_weight": local_weight,
            "dilated_weight": dilated_weight,
            "pointwise_weight": pointwise_weight,
        }
        for name, tensor in given.items():
            _checks.check_same_kind(name, tensor, "input", input)


def _dispatched(
    input: Tensor,
    local_weight: Tensor,
    local_bias: Tensor | None,
    dilated_weight: Tensor,
    dilated_bias: Tensor | None,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    dilation: int = 3,
) -> Tensor:
    return lka2d(
        input,
        local_weight,
        local_bias,
        dilated_weight,
        dilated_bias,
        pointwise_weight,
        pointwise_bias,
        dilation=dilation,
    )


_library.register_composite(
    "lka2d(Tensor input, Tensor local_weight, Tensor? local_bias, Tensor dilated_weight, "
    "Tensor? dilated_bias, Tensor pointwise_weight, Tensor? pointwise_bias, int dilation=3) "
    "-> Tensor",
    _dispatched,
)
