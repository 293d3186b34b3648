r"""Depthwise convolution and its two adjoints, the three faces of one trilinear form.

With kernels :math:`w` that do not change from place to place, a full map :math:`x` and a strided
map :math:`y`,

.. math::
    T(w, x, y) = \sum_{n,c,\delta,i} w[c, \delta]\; x[n, c, s i + \delta]\; y[n, c, i]

is linear in each argument. Its partial derivatives are the convolution, its transpose and the
correlation of the two maps, so each one's gradients are the other two, to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from volution.ops import _checks, _library, _native
from volution.ops._shared.depthwise import native, reference
from volution.ops._shared.depthwise.checks import check_conv, check_input, check_weight
from volution.ops._shared.layout import empty_map, strided

_TRITON = "volution.ops._shared.depthwise.triton_kernels"


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
    scale: float = 1.0,
    activation: str | None = None,
    gate: Tensor | None = None,
    shortcut: bool = False,
) -> Tensor:
    r"""Filter every channel with its own kernel, and finish the result in the same pass.

    With :math:`K` odd, stride :math:`s`, dilation :math:`d` and zeros outside the image,

    .. math::
        y_{n,c,i,j} = g_{n,c,i,j}\; a\Bigl(\alpha\bigl(b_c + \sum_{u,v=0}^{K-1} w_{c,u,v}\;
                      x_{n,\,c,\;si + d(u - \lfloor K/2 \rfloor),\;sj + d(v - \lfloor K/2 \rfloor)}
                      \;[{}+ x_{n,c,i,j}]\bigr)\Bigr).

    Args:
        input: Feature map :math:`x`, shape ``(N, C, H, W)``. Any memory format; channels-last is
            fastest.
        weight: Kernels :math:`w`, shape ``(C, 1, K, K)`` as those of a grouped
            :func:`torch.nn.functional.conv2d`, or ``(N, C, K, K)`` for kernels of each image's
            own. ``K`` is odd. Like all tensors here of the dtype and device of ``input``; under
            autocast all are cast to its dtype first.
        bias: :math:`b`, shape ``(C,)``, or ``(N, C)`` for biases of each image's own.
        stride: Step between output pixels, in input pixels. At least 1.
        dilation: Step between kernel taps, in input pixels. At least 1.
        scale: The factor :math:`\alpha`.
        activation: :math:`a`: None for none, or ``"gelu"``, the exact (erf) form.
        gate: A map :math:`g` that multiplies the first ``C_g`` channels of the result, shape
            ``(N, C_g, H_out, W_out)`` with ``1 <= C_g <= C``; the other channels stay as they are.
        shortcut: Add ``input`` itself to the sum, as the last term shows; needs ``stride`` 1.
            Unlike a one added to the middle of the kernel, it costs half precision no digits.

    Returns:
        Tensor of shape ``(N, C, ceil(H / stride), ceil(W / stride))``, in the dtype, device and
        memory format of ``input``. Half precision is computed in float32 and rounded once.

    Raises:
        ValueError: If a shape, ``stride``, ``dilation``, ``activation`` or ``shortcut`` breaks a
            rule above.
        TypeError: If ``input`` is not floating point, or another tensor differs in dtype or device.

    Gradients:
        For all four tensors, of any order, in reverse and forward mode. What lies between the
        convolution and the result is computed again in the backward pass, not stored.

    Example:
        >>> import torch
        >>> x, w = torch.ones(1, 2, 5, 5), torch.ones(2, 1, 3, 3)
        >>> y = depthwise_conv2d(x, w)
        >>> y[0, 0, 0, 0].item(), y[0, 0, 2, 2].item()
        (4.0, 9.0)
        >>> half = torch.full((1, 1, 5, 5), 0.5)
        >>> depthwise_conv2d(x, w, torch.ones(2), gate=half)[0, :, 2, 2].tolist()
        [5.0, 10.0]
    """
    _checks.check_one_of("activation", activation, (None, "gelu"))
    _checks.check_rank("input", input, "N, C, H, W")
    _checks.check_rank("weight", weight, "C or N, 1 or C, K, K")
    if weight.shape[1] == 1 and weight.shape[0] == input.shape[1]:
        weight = weight.transpose(0, 1)
    if bias is not None and bias.dim() == 1:
        bias = bias[None]
    gelu = activation == "gelu"
    rest = (stride, dilation, float(scale), gelu, shortcut)
    return _library.call(_CONV, input, weight, bias, gate, *rest)


def _fake_conv(
    input: Tensor, weight: Tensor, bias: Any, gate: Any, stride: int, *rest: Any
) -> Tensor:
    n, c, height, width = input.shape
    return empty_map(input, (n, c, strided(height, stride), strided(width, stride)))


def _fake_input(grad: Tensor, weight: Tensor, size: Sequence[int], *rest: Any) -> Tensor:
    return empty_map(grad, (*grad.shape[:2], *size))


def _fake_weight(grad: Tensor, input: Tensor, batch: int, kernel_size: int, *rest: Any) -> Tensor:
    return grad.new_empty((batch, grad.shape[1], kernel_size, kernel_size))


def _slice(tensor: Tensor | None, channels: int) -> Tensor | None:
    # narrow, because legacy vmap knows no rule for the alias that plain slicing makes.
    return None if tensor is None else tensor.narrow(1, 0, channels)


def _gated(map: Tensor, gate: Tensor | None) -> Tensor:
    """Multiply the first channels of a map with a gate that may have fewer."""
    if gate is None:
        return map
    channels = gate.shape[1]
    if channels == map.shape[1]:
        return map * gate
    rest = map.narrow(1, channels, map.shape[1] - channels)
    return torch.cat([map.narrow(1, 0, channels) * gate, rest], 1)


def _backward_conv(
    grad: Tensor,
    needs: Sequence[bool],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    stride: int,
    dilation: int,
    scale: float,
    gelu: bool,
    shortcut: bool = False,
) -> tuple[Tensor | None, ...]:
    steps = (stride, dilation)
    grad_gate = None
    if gate is not None and needs[3]:
        channels = gate.shape[1]
        operands = (_slice(x, channels) for x in (input, weight, bias, grad))
        # The result is linear in its gate, so the gate's gradient is the same pass, gated by grad.
        grad_gate = _CONV(*operands, *steps, scale, gelu, shortcut)
    inner = _gated(grad, gate)
    if gelu:
        before = _CONV(input, weight, bias, None, *steps, scale, False, shortcut)
        inner = torch.ops.aten.gelu_backward(inner, before)
    if scale != 1.0:
        inner = inner * scale
    grad_input = _INPUT(inner, weight, input.shape[2:], *steps, shortcut) if needs[0] else None
    grad_weight = None
    if needs[1]:
        grad_weight = _WEIGHT(inner, input, weight.shape[0], weight.shape[2], *steps)
    grad_bias = None
    if bias is not None and needs[2]:
        grad_bias = inner.sum((2, 3))
        if bias.shape[0] != grad_bias.shape[0]:
            grad_bias = grad_bias.sum(0, keepdim=True)
    return grad_input, grad_weight, grad_bias, grad_gate


def _backward_input(
    grad: Tensor,
    needs: Sequence[bool],
    outer: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: int,
    dilation: int,
    shortcut: bool = False,
) -> tuple[Tensor | None, ...]:
    steps = (stride, dilation)
    batch, side = weight.shape[0], weight.shape[2]
    return (
        _CONV(grad, weight, None, None, *steps, 1.0, False, shortcut) if needs[0] else None,
        _WEIGHT(outer, grad, batch, side, *steps) if needs[1] else None,
    )


def _backward_weight(
    grad: Tensor,
    needs: Sequence[bool],
    outer: Tensor,
    input: Tensor,
    batch: int,
    kernel_size: int,
    stride: int,
    dilation: int,
) -> tuple[Tensor | None, ...]:
    steps = (stride, dilation)
    return (
        _CONV(input, grad, None, None, *steps, 1.0, False) if needs[0] else None,
        _INPUT(outer, grad, input.shape[2:], *steps) if needs[1] else None,
    )


def _tangents_conv(
    moved: Sequence[Tensor | None],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    stride: int,
    dilation: int,
    scale: float,
    gelu: bool,
    shortcut: bool = False,
) -> list[Tensor]:
    """Differentiate along tangents of the four tensors."""
    steps = (stride, dilation, scale)
    d_input, d_weight, d_bias, d_gate = moved
    parts = []
    if d_input is not None:
        parts.append(_CONV(d_input, weight, None, None, *steps, False, shortcut))
    if d_weight is not None:
        parts.append(_CONV(input, d_weight, None, None, *steps, False))
    if d_bias is not None:
        size = [strided(side, stride) for side in input.shape[2:]]
        parts.append((scale * d_bias[:, :, None, None]).expand(*input.shape[:2], *size))
    if parts and gelu:
        before = _CONV(input, weight, bias, None, *steps, False, shortcut)
        parts = [torch.ops.aten.gelu_backward(sum(parts[1:], parts[0]), before)]
    parts = [_gated(part, gate) for part in parts]
    if d_gate is not None:
        channels = d_gate.shape[1]
        operands = (_slice(x, channels) for x in (input, weight, bias))
        moved_gate = _CONV(*operands, d_gate, *steps, gelu, shortcut)
        rest = [0, 0, 0, 0, 0, input.shape[1] - channels]
        parts.append(F.pad(moved_gate, rest) if rest[-1] else moved_gate)
    return parts


def _tangents_input(
    moved: Sequence[Tensor | None],
    grad: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: int,
    dilation: int,
    shortcut: bool = False,
) -> list[Tensor]:
    steps = (size, stride, dilation)
    d_grad, d_weight = moved
    parts = [] if d_grad is None else [_INPUT(d_grad, weight, *steps, shortcut)]
    return parts if d_weight is None else [*parts, _INPUT(grad, d_weight, *steps, False)]


def _folded(tensor: Tensor | None, dim: int | None, size: int, batch: int) -> Tensor | None:
    """Fold a mapped dimension into the batch; what all of both share stays as it is.

    ``batch`` is the number of images of one of the ``size`` problems.
    """
    if tensor is None or (dim is None and tensor.shape[0] == 1 and batch != 1):
        return tensor
    tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.expand(size, batch, *tensor.shape[2:]).flatten(0, 1)


def _vmap_maps(name: str, count: int) -> Callable[..., tuple[Tensor, int]]:
    """Return the batching rule of an operator of ``count`` tensors that returns a map."""

    def rule(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        size = info.batch_size
        batch = args[0].shape[0 if in_dims[0] is None else int(in_dims[0] == 0)]
        pairs = zip(args[:count], in_dims, strict=False)
        tensors = [_folded(x, dim, size, batch) for x, dim in pairs]
        out: Tensor = getattr(torch.ops.volution, name)(*tensors, *args[count:])
        return out.unflatten(0, (size, batch)), 0

    return rule


def _vmap_weight(
    info: Any, in_dims: Any, grad: Tensor, input: Tensor, batch: int, *rest: Any
) -> tuple[Tensor, int]:
    size = info.batch_size
    images = grad.shape[0 if in_dims[0] is None else int(in_dims[0] == 0)]
    pair = [_folded(x, dim, size, images) for x, dim in zip((grad, input), in_dims, strict=False)]
    out = _WEIGHT(*pair, size * images, *rest).unflatten(0, (size, images))
    return (out if batch == images else out.sum(1, keepdim=True)), 0


def _flops_conv(input: Sequence[int], weight: Sequence[int], *rest: Any, **_kwargs: Any) -> int:
    """Count a multiplication and an addition per channel, tap and output pixel."""
    stride = rest[2]
    pixels = strided(input[2], stride) * strided(input[3], stride)
    return 2 * input[0] * input[1] * weight[2] ** 2 * pixels


def _flops_input(grad: Sequence[int], weight: Sequence[int], *_rest: Any, **_kwargs: Any) -> int:
    return 2 * grad[0] * grad[1] * weight[2] ** 2 * grad[2] * grad[3]


def _flops_weight(
    grad: Sequence[int], input: Sequence[int], batch: int, side: int, *_rest: Any, **_kwargs: Any
) -> int:
    return 2 * grad[0] * grad[1] * side**2 * grad[2] * grad[3]


_CONV = _library.register(
    "depthwise_conv2d(Tensor input, Tensor weight, Tensor? bias, Tensor? gate, int stride, "
    "int dilation, float scale, bool gelu, bool shortcut=False) -> Tensor",
    check=check_conv,
    reference=reference.depthwise_conv2d,
    native=native.depthwise_conv2d,
    triton_module=_TRITON,
    native_dtypes=_native.DTYPES,
    fake=_fake_conv,
    backward=_backward_conv,
    flops=_flops_conv,
    tensors=4,
    tangents=_tangents_conv,
    vmap=_vmap_maps("depthwise_conv2d", 4),
)
_INPUT = _library.register(
    "depthwise_conv2d_input(Tensor grad, Tensor weight, SymInt[] size, int stride, int dilation, "
    "bool shortcut=False) -> Tensor",
    check=check_input,
    reference=reference.depthwise_conv2d_input,
    native=native.depthwise_conv2d_input,
    triton_module=_TRITON,
    native_dtypes=_native.DTYPES,
    fake=_fake_input,
    backward=_backward_input,
    flops=_flops_input,
    tangents=_tangents_input,
    vmap=_vmap_maps("depthwise_conv2d_input", 2),
)
_WEIGHT = _library.register(
    "depthwise_conv2d_weight(Tensor grad, Tensor input, SymInt batch, int kernel_size, int stride, "
    "int dilation) -> Tensor",
    check=check_weight,
    reference=reference.depthwise_conv2d_weight,
    native=native.depthwise_conv2d_weight,
    triton_module=_TRITON,
    native_dtypes=_native.DTYPES,
    fake=_fake_weight,
    backward=_backward_weight,
    flops=_flops_weight,
    vmap=_vmap_weight,
)
