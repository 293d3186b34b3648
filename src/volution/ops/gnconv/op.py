"""The recursive gating of a gated convolution, as a function of already filtered maps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate

import torch
from torch import Tensor

from volution.ops import _checks, _library
from volution.ops._shared.depthwise import depthwise_conv2d
from volution.ops._shared.pointwise import pointwise


def gnconv2d(
    p: Tensor | None,
    q: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
) -> Tensor:
    r"""Gate a map again and again, with a matrix over the channels before each further gate.

    With ``n`` gates :math:`q_0, \dots, q_{n-1}` of widths :math:`C_0, \dots, C_{n-1}`, slices of
    one map,

    .. math::
        p_1 = p_0 \odot q_0, \qquad p_{k+1} = (w_k\, p_k + b_k) \odot q_k, \qquad
        k = 1, \dots, n - 1,

    and the result is :math:`p_n`, or :math:`w_n\, p_n + b_n` where one matrix more is given.
    Without biases it is homogeneous of degree ``n + 1`` in ``(p, q)``. Making both from a map
    is the work of :class:`GnConv`; this function combines them.

    Args:
        p: The map :math:`p_0`, shape ``(N, C_0, H, W)``, or None where the first channels of ``q``
            already hold :math:`p_0 \odot q_0`, as :func:`depthwise_conv2d` returns with a gate.
        q: The gates in one map, shape ``(N, C_0 + ... + C_{n-1}, H, W)``. Any memory format;
            channels-last is fastest.
        weights: The matrices, shapes ``(C_k, C_{k-1})`` or ``(C_k, C_{k-1}, 1, 1)`` for ``k`` from
            1 to ``n - 1``. One more, ``(D, C_{n-1})``, projects the result.
        biases: A vector or None for each matrix; None for none at all.

    Returns:
        Tensor of shape ``(N, C_{n-1}, H, W)``, with a projection ``(N, D, H, W)``, in the dtype of
        ``q``. float16 is computed in float32, since the product of ``n + 1`` factors leaves its
        range, and rounded once. Under autocast to float16 all of it is an operator of the
        float32 list: the result stays float32.

    Raises:
        ValueError: If the shapes do not fit each other; the message names the argument.
        TypeError: If ``q`` is not floating point, or ``p`` is of another dtype or device.

    Gradients:
        For all tensors, of any order, in reverse and forward mode.

    Example:
        >>> import torch
        >>> p, q = torch.full((1, 1, 2, 2), 3.0), torch.full((1, 3, 2, 2), 2.0)
        >>> gnconv2d(p, q, [torch.ones(2, 1)])[0, :, 0, 0].tolist()
        [12.0, 12.0]

    References:
        Rao et al., "HorNet: Efficient High-Order Spatial Interactions with Recursive Gated
        Convolutions", NeurIPS 2022. https://arxiv.org/abs/2207.14284
    """
    biases = [None] * len(weights) if biases is None else biases
    ends = _check(p, q, weights, biases)
    if not _in_float32(q):
        return _recursion(p, q, weights, biases, ends)
    device = q.device.type
    autocast = _library.autocasts(device)
    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        out = _recursion(
            None if p is None else p.float(),
            q.float(),
            [weight.float() for weight in weights],
            [None if bias is None else bias.float() for bias in biases],
            ends,
        )
    return out if autocast else out.to(q.dtype)


def filtered_gnconv2d(
    p: Tensor,
    q: Tensor,
    kernel: Tensor,
    kernel_bias: Tensor | None,
    scale: float,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
) -> Tensor:
    """Filter ``q`` with a depthwise convolution and gate; the first gate costs no pass of its own.

    In float16 it does: the product may leave the range that :func:`gnconv2d` computes in float32.
    """
    if _in_float32(q):
        return gnconv2d(p, depthwise_conv2d(q, kernel, kernel_bias, scale=scale), weights, biases)
    q = depthwise_conv2d(q, kernel, kernel_bias, scale=scale, gate=p)
    return gnconv2d(None, q, weights, biases)


def _recursion(
    p: Tensor | None,
    q: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    ends: Sequence[int],
) -> Tensor:
    # One split: the gradients of its parts are put together once, not each in a map of zeros.
    gates = q.split(_widths([end for end in ends if end <= q.shape[1]]), 1)
    p = gates[0] if p is None else p * gates[0]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True), 1):
        p = pointwise(p, weight, bias, gate=gates[i] if i < len(gates) else None)
    return p


def _in_float32(q: Tensor) -> bool:
    """Return whether the products would otherwise be float16 numbers, at most 65504."""
    device = q.device.type
    if _library.autocasts(device):
        lowered = q.dtype != torch.float64
        return lowered and torch.get_autocast_dtype(device) == torch.float16
    return q.dtype == torch.float16


def _check(
    p: Tensor | None, q: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> list[int]:
    """Return where the gate of ``p``, and then that of each matrix, ends in ``q``.

    A matrix that projects the result has its end beyond the last channel.
    """
    _checks.check_rank("q", q, "N, C_0 + ... + C_n-1, H, W")
    _checks.check_floating("q", q)
    if len(biases) != len(weights):
        raise ValueError(
            f"biases must have an entry for each of the {len(weights)} weights, got {len(biases)}"
        )
    shapes = [tuple(weight.shape) for weight in weights]
    for i, shape in enumerate(shapes):
        if len(shape) not in (2, 4) or shape[2:] not in ((), (1, 1)):
            raise ValueError(
                f"weights[{i}] must have shape (C_out, C_in) or (C_out, C_in, 1, 1), got {shape}"
            )
        if i and shape[1] != shapes[i - 1][0]:
            raise ValueError(
                f"weights[{i}] must take the {shapes[i - 1][0]} channels that weights[{i - 1}] "
                f"gives, got shape {shape}"
            )
    channels = q.shape[1]
    first = shapes[0][1] if shapes else channels
    ends = list(accumulate([first, *(shape[0] for shape in shapes)]))
    if channels not in ends[-2:]:
        raise ValueError(
            f"q must have the sum of the widths as channels, {' + '.join(map(str, _widths(ends)))} "
            f"= {ends[-1]}, or {ends[-2] if len(ends) > 1 else first} if the last of the weights "
            f"projects the result, got {channels}"
        )
    if p is not None:
        _checks.check_same_kind("p", p, "q", q)
        _checks.check_size("p", p, (q.shape[0], first, *q.shape[2:]), "N, C_0, H, W")
    return ends


def _widths(ends: Sequence[int]) -> list[int]:
    return [end - before for end, before in zip(ends, [0, *ends], strict=False)]
