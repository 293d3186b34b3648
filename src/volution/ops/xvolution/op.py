"""Pixel shift self-attention: every pixel attends to a few shifted copies of the map."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from volution.ops import _checks, _library
from volution.ops._shared.layout import strided
from volution.ops._shared.neighbourhood import correlate, gather, window_offsets

Offsets = Sequence[int] | Sequence[Sequence[int]]


def pssa2d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    heads: int,
    kernel_size: int = 3,
    offsets: Offsets | None = None,
    stride: int = 1,
    scale: float | None = None,
    normalize: str = "none",
) -> Tensor:
    r"""Let every pixel attend to its neighbours: shift the map, multiply, sum.

    Pixel shift self-attention (PSSA) compares each query with the keys of a window, or of any
    list of offsets, and sums the values there with the results as weights. With offsets
    :math:`D`, stride :math:`s`, the head :math:`h(c)` of a channel and heads of :math:`d` query
    channels,

    .. math::
        a_{n,h,\delta,i} = \sigma \sum_{c \in h} q_{n,c,i}\, k_{n,c,\,s i+\delta}, \qquad
        y_{n,c,i} = \sum_{\delta \in D} a_{n,\,h(c),\,\delta,\,i}\; v_{n,\,c,\,s i+\delta},

    where :math:`k` and :math:`v` are zero outside the image. No number is kept per pixel, offset
    and channel. Stacked, such layers see one reach further each; :class:`PSSA` makes ``q``, ``k``
    and ``v`` from a map.

    Args:
        q: Queries, shape ``(N, C_q, ceil(H / stride), ceil(W / stride))``: those of the output
            pixels only. Any memory format; channels-last is fastest.
        k: Keys at full size, shape ``(N, C_q, H, W)``. Like ``v`` of the dtype and device of
            ``q``; under autocast all are cast to its dtype first.
        v: Values at full size, shape ``(N, C, H, W)``.
        heads: How many groups of channels attend on their own; divides ``C_q`` and ``C``.
        kernel_size: Side of the centred square window, odd. Unused where ``offsets`` are given.
        offsets: Where to look instead, in input pixels: pairs ``(row, column)``, or the same
            flat, as :func:`volution.ops.window_offsets` returns them. Each only once.
        stride: Step between output pixels, in input pixels. At least 1.
        scale: Factor :math:`\sigma`; ``(C_q / heads) ** -0.5`` if it is left out.
        normalize: ``"none"``, the paper's form, in which a weight may have any sign and size, or
            ``"softmax"`` over the offsets inside the image. A pixel that has none gets zeros.

    Returns:
        Tensor of shape ``(N, C, ceil(H / stride), ceil(W / stride))``, in the dtype, device and
        memory format of ``v``. Half precision is summed in float32, and rounded once for the
        weights and once for the result.

    Raises:
        ValueError: If a shape or number breaks a rule above, or ``offsets`` are empty or have
            duplicates; the message names the argument, what was expected and what came.
        TypeError: If ``q`` is not floating point, or ``k`` or ``v`` differ in dtype or device.

    Gradients:
        For ``q``, ``k`` and ``v``, of any order, in reverse and forward mode.

    Example:
        >>> import torch
        >>> x = torch.arange(1.0, 4.0).reshape(1, 1, 1, 3)
        >>> pssa2d(x, x, x, heads=1)[0, 0, 0].tolist()
        [5.0, 28.0, 39.0]
        >>> pssa2d(x, x, x, heads=1, offsets=[(0, 1)])[0, 0, 0].tolist()
        [4.0, 18.0, 0.0]

    References:
        Chen, Wang, Ni, "X-volution: On the Unification of Convolution and Self-attention", 2021.
        https://arxiv.org/abs/2106.02253
    """
    taps = flat_offsets(offsets, kernel_size)
    _check(q, k, v, heads, stride, normalize)
    kernel = pssa_kernel(q, k, heads, taps, stride, scale, normalize)
    return gather(v, kernel, taps, stride=stride)


def pssa_kernel(
    q: Tensor,
    k: Tensor,
    heads: int,
    offsets: Sequence[int],
    stride: int,
    scale: float | None,
    normalize: str,
) -> Tensor:
    """Return the weights of :func:`pssa2d`, ``(N, heads, D, h, w)``, for checked arguments."""
    factor = (q.shape[1] // heads) ** -0.5 if scale is None else scale
    # The smaller of the two tensors takes the factor; in its own memory it costs half.
    in_place = _library.runs_directly(q)
    late = heads * (len(offsets) // 2) <= q.shape[1] * (2 if in_place else 0.5)
    if factor != 1.0 and not late:
        q = q * factor
    kernel = correlate(q, k, offsets, heads, stride=stride)
    if factor != 1.0 and late:
        kernel = kernel.mul_(factor) if in_place else kernel * factor
    if normalize == "none":
        return kernel
    outside = ~_inside(offsets, stride, k, kernel)
    # The least number instead of minus infinity, and zeros afterwards: the same weights, and
    # neither they nor their gradients are NaN where all of a pixel's offsets are outside.
    kernel = kernel.masked_fill(outside, torch.finfo(kernel.dtype).min)
    return kernel.softmax(2).masked_fill(outside, 0.0)


def flat_offsets(offsets: Offsets | None, kernel_size: int, dilation: int = 1) -> tuple[int, ...]:
    """Return offsets, or those of a window, flat: row and column of each in turn.

    Raises:
        ValueError: If they are empty, no pairs of integers, or one of them comes twice.
    """
    if offsets is None:
        return window_offsets(kernel_size, dilation)
    listed = tuple(tuple(x) if isinstance(x, Sequence) else x for x in offsets)
    # Dynamo looks through caches, with a warning.
    return _flat(listed) if torch.compiler.is_compiling() else _cached_flat(listed)


def _flat(listed: tuple[int | tuple[int, ...], ...]) -> tuple[int, ...]:
    pairs: list[tuple[int, ...]] = [x for x in listed if isinstance(x, tuple)]
    numbers = [x for x in listed if not isinstance(x, tuple)]
    if numbers and not pairs and len(numbers) % 2 == 0:
        pairs = list(zip(numbers[0::2], numbers[1::2], strict=True))
    elif numbers:
        raise ValueError(f"offsets must be pairs (row, column), or all flat, got {listed}")
    if not pairs:
        raise ValueError("offsets must have at least one pair (row, column), got none")
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(x, int) for x in pair):
            raise ValueError(f"offsets must be pairs of integers (row, column), got {pair}")
    if len(set(pairs)) < len(pairs):
        again = [pair for pair in dict.fromkeys(pairs) if pairs.count(pair) > 1]
        raise ValueError(f"offsets must all differ, got {again} more than once")
    return tuple(step for pair in pairs for step in pair)


_cached_flat = lru_cache(maxsize=64)(_flat)


def _inside(offsets: Sequence[int], stride: int, input: Tensor, kernel: Tensor) -> Tensor:
    """Return which offsets of which pixels are inside the image, shape (D, h, w)."""

    def along(axis: int) -> Tensor:
        steps = torch.tensor(offsets[axis::2], device=input.device)
        pixels = torch.arange(kernel.shape[3 + axis], device=input.device)
        place = stride * pixels + steps[:, None]
        return (place >= 0) & (place < input.shape[2 + axis])

    return along(0)[:, :, None] & along(1)[:, None, :]


def _check(q: Tensor, k: Tensor, v: Tensor, heads: int, stride: int, normalize: str) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _checks.check_rank(name, tensor, "N, C, H, W")
    _checks.check_floating("q", q)
    _checks.check_positive("heads", heads)
    _checks.check_positive("stride", stride)
    _checks.check_one_of("normalize", normalize, ("none", "softmax"))
    n, c, height, width = v.shape
    wide = q.shape[1]
    _checks.check_sides("v", height, width)
    _checks.check_divides("heads", heads, "the channels of q", wide)
    _checks.check_divides("heads", heads, "the channels of v", c)
    _checks.check_size("k", k, (n, wide, height, width), "N, C_q, H, W")
    size = (n, wide, strided(height, stride), strided(width, stride))
    _checks.check_size("q", q, size, "N, C_q, ceil(H/stride), ceil(W/stride)")
    # Under autocast they may differ: each pass casts its own.
    if not _library.autocasts(q.device.type):
        _checks.check_same_kind("k", k, "q", q)
        _checks.check_same_kind("v", v, "q", q)


def _dispatched(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    offsets: Sequence[int],
    stride: int = 1,
    scale: float | None = None,
    normalize: str = "none",
) -> Tensor:
    rest = {"stride": stride, "scale": scale, "normalize": normalize}
    return pssa2d(q, k, v, heads=heads, offsets=offsets, **rest)  # type: ignore[arg-type]


_library.register_composite(
    "pssa2d(Tensor q, Tensor k, Tensor v, int heads, int[] offsets, int stride=1, "
    "float? scale=None, str normalize='none') -> Tensor",
    _dispatched,
)
