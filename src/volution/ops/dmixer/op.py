"""The dynamic depthwise convolution: kernels that every image brings along."""

from __future__ import annotations

import torch
from torch import Tensor

from volution.ops import _checks, _library
from volution.ops._shared.depthwise import depthwise_conv2d
from volution.ops.dmixer import reference


def dynamic_depthwise_conv2d(
    input: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
) -> Tensor:
    r"""Filter every channel of every image with a kernel of its own.

    The kernel of an image and channel is the same at all pixels, unlike that of
    :func:`volution.ops.involution2d`. With :math:`K` odd, stride :math:`s`, dilation :math:`d` and
    zeros outside the image,

    .. math::
        y_{n,c,i,j} = b_{n,c} + \sum_{u,v=0}^{K-1} k_{n,c,u,v}\;
                      x_{n,\,c,\;si + d(u - \lfloor K/2 \rfloor),\;sj + d(v - \lfloor K/2 \rfloor)}.

    Generating ``kernel`` from ``input`` is the work of :class:`IDConv`; this function only
    applies it.

    Args:
        input: Feature map :math:`x`, shape ``(N, C, H, W)``. Any memory format; channels-last is
            fastest.
        kernel: One ``K`` by ``K`` kernel :math:`k` for each image and channel, shape
            ``(N, C, K, K)`` with ``K`` odd and any strides. ``N`` is that of ``input``, one image
            included: kernels that the batch shares are those of
            :func:`volution.ops.depthwise_conv2d`. Same dtype and device as ``input``; under
            autocast all tensors are cast to its dtype first.
        bias: :math:`b`, shape ``(N, C)``, or None for none.
        stride: Step between output pixels, in input pixels. At least 1.
        dilation: Step between kernel taps, in input pixels. At least 1.

    Returns:
        Tensor of shape ``(N, C, ceil(H / stride), ceil(W / stride))``, in the dtype, device and
        memory format of ``input``. Half precision is summed in float32 and rounded once.

    Raises:
        ValueError: If a shape, ``stride`` or ``dilation`` breaks a rule above; the message names
            the argument, the size expected and the size received.
        TypeError: If ``input`` is not floating point, or another tensor differs in dtype or device.

    Gradients:
        For all three tensors, of any order, in reverse and forward mode. That of the kernel is
        summed over the pixels where it is computed: no tensor of a kernel for each pixel exists.

    Example:
        >>> x = torch.ones(2, 1, 5, 5)
        >>> box = torch.stack([torch.ones(1, 3, 3), torch.full((1, 3, 3), 2.0)])
        >>> y = dynamic_depthwise_conv2d(x, box)
        >>> y[:, 0, 0, 0].tolist(), y[:, 0, 2, 2].tolist()
        ([4.0, 8.0], [9.0, 18.0])
        >>> dynamic_depthwise_conv2d(x, box, torch.ones(2, 1), stride=2).shape
        torch.Size([2, 1, 3, 3])

    References:
        Lou et al., "TransXNet: Learning Both Global and Local Dynamics with a Dual Dynamic Token
        Mixer for Visual Recognition", TNNLS 2025. https://arxiv.org/abs/2310.19380
    """
    _check(input, kernel, bias, stride, dilation)
    if _library.wants_plain():
        # A convolution with a group for each image would fix the batch in the exported graph.
        device = input.device.type
        if _library.autocasts(device):
            dtype = torch.get_autocast_dtype(device)
            input, kernel = input.to(dtype), kernel.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        return reference.dynamic_depthwise_conv2d(
            input, kernel, bias, stride=stride, dilation=dilation
        )
    return depthwise_conv2d(input, kernel, bias, stride=stride, dilation=dilation)


def _check(input: Tensor, kernel: Tensor, bias: Tensor | None, stride: int, dilation: int) -> None:
    _checks.check_rank("input", input, "N, C, H, W")
    _checks.check_floating("input", input)
    _checks.check_sides("input", *input.shape[2:])
    _checks.check_positive("stride", stride)
    _checks.check_positive("dilation", dilation)
    _checks.check_rank("kernel", kernel, "N, C, K, K")
    batch, channels = input.shape[:2]
    rows, columns = kernel.shape[2:]
    if rows != columns or rows % 2 == 0:
        raise ValueError(
            f"kernel must be square with an odd side, shape (N, C, K, K), got K by K = {rows} by "
            f"{columns}"
        )
    _checks.check_size("kernel", kernel, (batch, channels, rows, rows), "N, C, K, K")
    given = {"kernel": kernel}
    if bias is not None:
        _checks.check_rank("bias", bias, "N, C")
        _checks.check_size("bias", bias, (batch, channels), "N, C")
        given["bias"] = bias
    # Under autocast the tensors may differ: they are cast.
    if not _library.autocasts(input.device.type):
        for name, tensor in given.items():
            _checks.check_same_kind(name, tensor, "input", input)


def _dispatched(
    input: Tensor, kernel: Tensor, bias: Tensor | None = None, stride: int = 1, dilation: int = 1
) -> Tensor:
    return dynamic_depthwise_conv2d(input, kernel, bias, stride=stride, dilation=dilation)


_library.register_composite(
    "dynamic_depthwise_conv2d(Tensor input, Tensor kernel, Tensor? bias=None, int stride=1, "
    "int dilation=1) -> Tensor",
    _dispatched,
)
