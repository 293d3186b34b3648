"""The involution function. It is the neighbourhood gather over a square window."""

from __future__ import annotations

from torch import Tensor

from volution.ops import _checks, _library
from volution.ops._shared.neighbourhood import gather, window_offsets


def involution2d(input: Tensor, kernel: Tensor, *, stride: int = 1, dilation: int = 1) -> Tensor:
    r"""Mix each pixel's neighbourhood with the kernel generated for that pixel.

    Involution turns the two habits of convolution around: the kernel changes from place to place,
    and the ``C // G`` channels of a group share it. With :math:`K` odd, stride :math:`s`,
    dilation :math:`d` and zeros outside the image,

    .. math::
        y_{n,c,i,j} = \sum_{u,v=0}^{K-1} k_{n,\,g(c),\,u,\,v,\,i,\,j}\;
                      x_{n,\,c,\;si + d(u - \lfloor K/2 \rfloor),\;sj + d(v - \lfloor K/2 \rfloor)},
        \qquad g(c) = \lfloor cG/C \rfloor .

    Making ``kernel`` from ``input`` is the work of :class:`Involution2d`; this function applies it.

    Args:
        input: Feature map, shape ``(N, C, H, W)``. Any memory format; channels-last is fastest.
        kernel: One ``K`` by ``K`` kernel for each group and output pixel, shape
            ``(N, G, K, K, H_out, W_out)``, where ``G`` divides ``C``, ``K`` is odd,
            ``H_out = ceil(H / stride)`` and ``W_out = ceil(W / stride)``.
            Same dtype and device as ``input``; under autocast both are cast to its dtype first.
        stride: Step between output pixels, in input pixels. At least 1.
        dilation: Step between kernel taps, in input pixels. At least 1.

    Returns:
        Tensor of shape ``(N, C, H_out, W_out)``, in the dtype, device and memory format of
        ``input``. Products are summed in float32 for float16 and bfloat16 inputs, in the input's
        own dtype otherwise.

    Raises:
        ValueError: If a shape, ``stride`` or ``dilation`` breaks a rule above; the message names
            the argument, the size expected and the size received.
        TypeError: If ``input`` is not floating point, or ``kernel`` differs in dtype or device.

    Gradients:
        For ``input`` and ``kernel``, of any order, in reverse and forward mode.

    Example:
        >>> import torch
        >>> x = torch.ones(1, 4, 5, 5)
        >>> box = torch.ones(1, 2, 3, 3, 5, 5)
        >>> involution2d(x, box)[0, 0, 0, 0].item(), involution2d(x, box)[0, 0, 2, 2].item()
        (4.0, 9.0)
        >>> involution2d(x, torch.ones(1, 2, 3, 3, 3, 3), stride=2).shape
        torch.Size([1, 4, 3, 3])

    References:
        Li et al., "Involution: Inverting the Inherence of Convolution for Visual Recognition",
        CVPR 2021. https://arxiv.org/abs/2103.06255
    """
    _checks.check_rank("kernel", kernel, "N, G, K, K, H_out, W_out")
    rows, columns = kernel.shape[2:4]
    if rows != columns or rows % 2 == 0:
        raise ValueError(
            f"kernel must be square with an odd side, shape (N, G, K, K, H_out, W_out), "
            f"got K by K = {rows} by {columns} in shape {tuple(kernel.shape)}"
        )
    return gather(input, kernel.flatten(2, 3), window_offsets(rows, dilation), stride=stride)


def _dispatched(input: Tensor, kernel: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    return involution2d(input, kernel, stride=stride, dilation=dilation)


_library.register_composite(
    "involution2d(Tensor input, Tensor kernel, int stride=1, int dilation=1) -> Tensor", _dispatched
)
