r"""Gather, scatter and correlate: the three faces of one trilinear form.

With kernels :math:`k`, a full map :math:`x` and a strided map :math:`w`,

.. math::
    T(k, x, w) = \sum_{n,c,\delta,i} k[n, g(c), \delta, i]\; x[n, c, s i + \delta]\; w[n, c, i]

is linear in each argument. Its partial derivatives are the three operators, so each one's
gradients are the other two, to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from volution.ops import _checks, _library, _native
from volution.ops._shared.layout import empty_kernel, empty_map, strided
from volution.ops._shared.neighbourhood import native, reference

_TRITON = "volution.ops._shared.neighbourhood.triton_kernels"


def window_offsets(kernel_size: int, dilation: int = 1) -> tuple[int, ...]:
    """Return the flat offsets of a centred square window, row by row.

    Args:
        kernel_size: Taps on a side, odd.
        dilation: Step between taps, in pixels.

    Returns:
        ``2 * kernel_size ** 2`` integers: row and column of each tap.

    Raises:
        ValueError: If ``kernel_size`` is even or either argument is below 1.

    Example:
        >>> window_offsets(3, dilation=2)[:6]
        (-2, -2, -2, 0, -2, 2)
    """
    _checks.check_positive("kernel_size", kernel_size, odd=True)
    _checks.check_positive("dilation", dilation)
    # Dynamo looks through caches, with a warning; building the window while tracing costs nothing.
    if torch.compiler.is_compiling():
        return _window(kernel_size, dilation)
    return _cached_window(kernel_size, dilation)


def _window(kernel_size: int, dilation: int) -> tuple[int, ...]:
    reach = [dilation * (i - kernel_size // 2) for i in range(kernel_size)]
    return tuple(step for row in reach for column in reach for step in (row, column))


_cached_window = lru_cache(maxsize=64)(_window)


def gather(input: Tensor, kernel: Tensor, offsets: Sequence[int], *, stride: int = 1) -> Tensor:
    r"""Sum each pixel's neighbours with that pixel's own weights.

    :math:`y_{n,c,i} = \sum_\delta k_{n,g(c),\delta,i}\, x_{n,c,s i+\delta}`, with zeros outside
    the image and :math:`g(c) = \lfloor cG/C \rfloor`. This is involution, and also "attention
    times value" over a window.

    Args:
        input: Full map, shape ``(N, C, H, W)``.
        kernel: Weights, shape ``(N, G, D, ceil(H / stride), ceil(W / stride))``, where ``G``
            divides ``C``. Same dtype and device as ``input``; under autocast both are cast.
        offsets: Row and column of each of the ``D`` taps, flat: ``(r0, c0, r1, c1, ...)``, in
            input pixels. :func:`window_offsets` makes those of a square window.
        stride: Step between output pixels, in input pixels.

    Returns:
        Shape ``(N, C, h, w)``, in the dtype, device and memory format of ``input``. Half
        precision is summed in float32 and rounded once.

    Raises:
        ValueError: If shapes, ``offsets`` or ``stride`` do not fit together.
        TypeError: If ``input`` is not floating point or ``kernel`` differs in dtype or device.

    Gradients:
        For ``input`` (:func:`scatter`) and ``kernel`` (:func:`correlate`), of any order, in
        reverse and forward mode.

    Example:
        >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
        >>> right = torch.ones(1, 1, 1, 3, 3)
        >>> gather(x, right, (0, 1))[0, 0, 0].tolist()
        [1.0, 2.0, 0.0]
    """
    return _library.call(_GATHER, input, kernel, offsets, stride)


def scatter(
    input: Tensor, kernel: Tensor, offsets: Sequence[int], size: Sequence[int], *, stride: int = 1
) -> Tensor:
    r"""Add each pixel into its neighbours with that pixel's own weights.

    :math:`y_{n,c,t} = \sum_{\delta,i:\, s i+\delta=t} k_{n,g(c),\delta,i}\, x_{n,c,i}`: the
    transpose of :func:`gather`. What falls outside the image is dropped.

    Args:
        input: Strided map, shape ``(N, C, h, w)``.
        kernel: Weights, shape ``(N, G, D, h, w)``, where ``G`` divides ``C``. Same dtype and
            device as ``input``; under autocast both are cast.
        offsets: As in :func:`gather`.
        size: Height and width of the result; ``ceil(size / stride)`` must be ``(h, w)``. It
            cannot be told from ``input``, because rounding up is not invertible.
        stride: Step between input pixels, in output pixels.

    Returns:
        Shape ``(N, C, *size)``, in the dtype, device and memory format of ``input``. Half
        precision is summed in float32 and rounded once.

    Raises:
        ValueError: If shapes, ``offsets``, ``size`` or ``stride`` do not fit together.
        TypeError: If ``input`` is not floating point or ``kernel`` differs in dtype or device.

    Gradients:
        For ``input`` (:func:`gather`) and ``kernel`` (:func:`correlate`), of any order.

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0, 3.0]]]])
        >>> scatter(x, torch.ones(1, 1, 1, 1, 3), (0, 1), (1, 3)).tolist()
        [[[[0.0, 1.0, 2.0]]]]
    """
    return _library.call(_SCATTER, input, kernel, offsets, size, stride)


def correlate(
    query: Tensor, input: Tensor, offsets: Sequence[int], groups: int, *, stride: int = 1
) -> Tensor:
    r"""Compare each pixel with its neighbours, one number per group and tap.

    :math:`k_{n,g,\delta,i} = \sum_{c \in g} q_{n,c,i}\, x_{n,c,s i+\delta}`, zero where the tap
    lies outside the image. This is "query times key" over a window.

    Args:
        query: Strided map, shape ``(N, C, ceil(H / stride), ceil(W / stride))``.
        input: Full map, shape ``(N, C, H, W)``. Same dtype and device as ``query``; under
            autocast both are cast.
        offsets: As in :func:`gather`.
        groups: Number of channel groups ``G``; divides ``C``.
        stride: Step between query pixels, in input pixels.

    Returns:
        Shape ``(N, G, D, h, w)``, in the dtype and device of ``query``; pixel-major in memory if
        ``query`` is channels-last. Half precision is summed in float32 and rounded once.

    Raises:
        ValueError: If shapes, ``offsets``, ``groups`` or ``stride`` do not fit together.
        TypeError: If ``query`` is not floating point or ``input`` differs in dtype or device.

    Gradients:
        For ``query`` (:func:`gather`) and ``input`` (:func:`scatter`), of any order.

    Example:
        >>> q = torch.ones(1, 4, 2, 2)
        >>> correlate(q, q, window_offsets(3), groups=2)[0, 0, :, 0, 0].tolist()
        [0.0, 0.0, 0.0, 0.0, 2.0, 2.0, 0.0, 2.0, 2.0]
    """
    return _library.call(_CORRELATE, query, input, offsets, groups, stride)


def _check_window(offsets: Sequence[int], stride: int, taps_name: str, taps: int) -> None:
    _checks.check_positive("stride", stride)
    if len(offsets) == 0 or len(offsets) % 2:
        raise ValueError(
            f"offsets must hold a row and a column for each tap, got {len(offsets)} numbers"
        )
    if len(offsets) != 2 * taps:
        raise ValueError(
            f"{taps_name} must have one tap for each pair of offsets, {len(offsets) // 2}, "
            f"got {taps}"
        )


def _check_gather(input: Tensor, kernel: Tensor, offsets: Sequence[int], stride: int) -> None:
    _checks.check_rank("input", input, "N, C, H, W")
    _checks.check_rank("kernel", kernel, "N, G, D, h, w")
    _checks.check_floating("input", input)
    _checks.check_same_kind("kernel", kernel, "input", input)
    n, c, height, width = input.shape
    _, groups, taps, _, _ = kernel.shape
    _check_window(offsets, stride, "kernel", taps)
    _checks.check_sides("input", height, width)
    _checks.check_divides("the groups of kernel", groups, "the channels of input", c)
    expected = (n, groups, taps, strided(height, stride), strided(width, stride))
    _checks.check_size("kernel", kernel, expected, "N, G, D, ceil(H/stride), ceil(W/stride)")


def _check_scatter(
    input: Tensor, kernel: Tensor, offsets: Sequence[int], size: Sequence[int], stride: int
) -> None:
    _checks.check_rank("input", input, "N, C, h, w")
    _checks.check_rank("kernel", kernel, "N, G, D, h, w")
    _checks.check_floating("input", input)
    _checks.check_same_kind("kernel", kernel, "input", input)
    n, c, h, w = input.shape
    _, groups, taps, _, _ = kernel.shape
    _check_window(offsets, stride, "kernel", taps)
    if len(size) != 2:
        raise ValueError(f"size must be (height, width), got {tuple(size)}")
    _checks.check_sides("size", *size)
    _checks.check_divides("the groups of kernel", groups, "the channels of input", c)
    _checks.check_size("kernel", kernel, (n, groups, taps, h, w), "N, G, D, h, w")
    expected = (n, c, strided(size[0], stride), strided(size[1], stride))
    _checks.check_size("input", input, expected, "N, C, ceil(size/stride)")


def _check_correlate(
    query: Tensor, input: Tensor, offsets: Sequence[int], groups: int, stride: int
) -> None:
    _checks.check_rank("query", query, "N, C, h, w")
    _checks.check_rank("input", input, "N, C, H, W")
    _checks.check_floating("query", query)
    _checks.check_same_kind("input", input, "query", query)
    n, c, height, width = input.shape
    _check_window(offsets, stride, "offsets", len(offsets) // 2)
    _checks.check_sides("input", height, width)
    _checks.check_divides("groups", groups, "the channels of query", c)
    expected = (n, c, strided(height, stride), strided(width, stride))
    _checks.check_size("query", query, expected, "N, C, ceil(H/stride), ceil(W/stride)")


def _fake_gather(input: Tensor, kernel: Tensor, offsets: Sequence[int], stride: int) -> Tensor:
    return empty_map(input, (input.shape[0], input.shape[1], kernel.shape[3], kernel.shape[4]))


def _fake_scatter(
    input: Tensor, kernel: Tensor, offsets: Sequence[int], size: Sequence[int], stride: int
) -> Tensor:
    return empty_map(input, (input.shape[0], input.shape[1], *size))


def _fake_correlate(
    query: Tensor, input: Tensor, offsets: Sequence[int], groups: int, stride: int
) -> Tensor:
    return empty_kernel(query, groups, len(offsets) // 2)


_Wanted = tuple[bool, bool]
_Grads = tuple[Tensor | None, Tensor | None]


def _backward_gather(
    grad: Tensor, needs: _Wanted, input: Tensor, kernel: Tensor, offsets: Sequence[int], stride: int
) -> _Grads:
    size, groups = input.shape[2:], kernel.shape[1]
    return (
        _SCATTER(grad, kernel, offsets, size, stride) if needs[0] else None,
        _CORRELATE(grad, input, offsets, groups, stride) if needs[1] else None,
    )


def _backward_scatter(
    grad: Tensor,
    needs: _Wanted,
    input: Tensor,
    kernel: Tensor,
    offsets: Sequence[int],
    size: Sequence[int],
    stride: int,
) -> _Grads:
    groups = kernel.shape[1]
    return (
        _GATHER(grad, kernel, offsets, stride) if needs[0] else None,
        _CORRELATE(input, grad, offsets, groups, stride) if needs[1] else None,
    )


def _backward_correlate(
    grad: Tensor,
    needs: _Wanted,
    query: Tensor,
    input: Tensor,
    offsets: Sequence[int],
    groups: int,
    stride: int,
) -> _Grads:
    size = input.shape[2:]
    return (
        _GATHER(input, grad, offsets, stride) if needs[0] else None,
        _SCATTER(query, grad, offsets, size, stride) if needs[1] else None,
    )


def _flops(
    first_shape: Sequence[int], second_shape: Sequence[int], *rest: object, **_kwargs: object
) -> int:
    """Count a multiplication and an addition per channel, tap and strided pixel."""
    # The strided map or the kernel tells the pixels; for gather the kernel does.
    if len(second_shape) == 5:  # gather, scatter: (map, kernel)
        _, _, taps, h, w = second_shape
    else:  # correlate: (strided map, full map, offsets)
        offsets = rest[0]
        assert isinstance(offsets, list | tuple)
        taps, (h, w) = len(offsets) // 2, first_shape[2:]
    return 2 * first_shape[0] * first_shape[1] * taps * h * w


_GATHER = _library.register(
    "gather(Tensor input, Tensor kernel, int[] offsets, int stride) -> Tensor",
    check=_check_gather,
    reference=reference.gather,
    native=native.gather,
    triton_module=_TRITON,
    native_dtypes=_native.DTYPES,
    fake=_fake_gather,
    backward=_backward_gather,
    flops=_flops,
)
_SCATTER = _library.register(
    "scatter(Tensor input, Tensor kernel, int[] offsets, SymInt[] size, int stride) -> Tensor",
    check=_check_scatter,
    reference=reference.scatter,
    native=native.scatter,
    triton_module=_TRITON,
    native_dtypes=_native.DTYPES,
    fake=_fake_scatter,
    backward=_backward_scatter,
    flops=_flops,
)
_CORRELATE = _library.register(
    "correlate(Tensor query, Tensor input, int[] offsets, int groups, int stride) -> Tensor",
    check=_check_correlate,
    reference=reference.correlate,
    native=native.correlate,
    triton_module=_TRITON,
    native_dtypes=_native.DTYPES,
    fake=_fake_correlate,
    backward=_backward_correlate,
    flops=_flops,
)
