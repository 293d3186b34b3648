"""The global filter: a circular convolution as large as the map, done in the Fourier domain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from volution.ops import _checks, _library
from volution.ops.gnconv import reference
from volution.ops.gnconv.dft import cached_matrices, dft_matrices, filter_by_products

# Matrix products take a time of (height + width) for each pixel, the FFT one that hardly grows.
# One AVX-512 core, channels-last, 240 and 496 channels, time of the FFT over that of products:
# 7x7 3.6-5.5, 14x14 2.4-2.9, 15x17 3.6-4.2, 28x28 1.4-3.4, 25x42 1.3-2.9, 56x56 0.6-0.9.
LONGEST_SIDES = 84

# For each weight, what it is turned into for each size of map, as long as it does not change.
_PREPARED: Any = WeakTensorKeyDictionary()
_SIZES = 8
_NOTHING: tuple[Tensor | None, int, tuple[Tensor, ...]] = (None, -1, ())


def global_filter2d(input: Tensor, complex_weight: Tensor, *, resize: bool = True) -> Tensor:
    r"""Multiply each channel's two-dimensional spectrum with a complex weight.

    With :math:`\mathcal F` the orthonormal Fourier transform of real maps, of which half the
    columns are kept,

    .. math::
        y_{n,c} = \mathcal F^{-1}\bigl(w_c \odot \mathcal F(x_{n,c})\bigr),

    a circular convolution with a kernel as large as the map. Imaginary parts that a real map
    cannot have, those of column 0 and, in even widths, of the last column, are dropped by the
    inverse, as :func:`torch.fft.irfft2` does.

    Args:
        input: Feature map :math:`x`, shape ``(N, C, H, W)``. Any memory format; channels-last is
            fastest.
        complex_weight: :math:`w` as pairs of real and imaginary parts, shape ``(C, h, w, 2)``,
            where ``h`` is the height of a map and ``w`` the width of its half spectrum,
            ``W // 2 + 1``. Any floating-point dtype, on the device of ``input``.
        resize: Resize the weight to ``(H, W // 2 + 1)`` where it has another size, bilinearly
            with corners aligned. Otherwise other sizes are errors.

    Returns:
        Tensor of shape ``(N, C, H, W)`` in the dtype of ``input``. It is computed in float32, in
        float64 for a float64 input, also under autocast: half precision has no Fourier transforms
        of all sizes, and too few digits for their sums.

    Raises:
        ValueError: If a shape breaks a rule above.
        TypeError: If a tensor is not floating point, or ``complex_weight`` is on another device.

    Gradients:
        For both tensors, of any order, in reverse and forward mode.

    Two forms compute the same numbers: the fast Fourier transform, and products with small
    matrices of sines and cosines (:mod:`volution.ops.gnconv.dft`). The second is used on CPUs
    where ``H + W`` is at most 84, in whatever is compiled or exported, and under
    :func:`volution.ops.reference_ops`: it has no complex numbers.

    Where gradients are not recorded, a parameter that was resized is kept for the next map of that
    size. Changes in place are noticed, but for those made through ``.data``, which PyTorch hides.

    Example:
        >>> x = torch.arange(6.0).reshape(1, 1, 2, 3)
        >>> unchanged = torch.tensor([1.0, 0.0]).expand(1, 2, 2, 2)
        >>> torch.allclose(global_filter2d(x, unchanged), x, atol=1e-6)
        True

    References:
        Rao et al., "HorNet: Efficient High-Order Spatial Interactions with Recursive Gated
        Convolutions", NeurIPS 2022. https://arxiv.org/abs/2207.14284
    """
    _check(input, complex_weight, resize)
    device = input.device.type
    if _library.autocasts(device):
        with torch.autocast(device, enabled=False):
            return _filtered(input, complex_weight)
    return _filtered(input, complex_weight)


def _check(input: Tensor, complex_weight: Tensor, resize: bool) -> None:
    _checks.check_rank("input", input, "N, C, H, W")
    _checks.check_rank("complex_weight", complex_weight, "C, h, w, 2")
    _checks.check_floating("input", input)
    _checks.check_floating("complex_weight", complex_weight)
    if complex_weight.device != input.device:
        raise TypeError(
            f"complex_weight must be on the device of input, {input.device}, got "
            f"{complex_weight.device}"
        )
    c, height, width = input.shape[1:]
    if height < 1 or width < 1:
        raise ValueError(f"input must be at least 1 pixel high and wide, got {(height, width)}")
    channels, *_, parts = complex_weight.shape
    if channels != c or parts != 2:
        raise ValueError(
            f"complex_weight must have shape (C, h, w, 2) with C = {c} channels of input, got "
            f"{tuple(complex_weight.shape)}"
        )
    if not resize and tuple(complex_weight.shape[1:3]) != (height, width // 2 + 1):
        raise ValueError(
            f"complex_weight must have shape (C, H, W // 2 + 1, 2) = "
            f"{(c, height, width // 2 + 1, 2)} to fit an input of {height} by {width} pixels "
            f"with resize=False, got {tuple(complex_weight.shape)}"
        )


def uses_products(height: int, width: int, device: str) -> bool:
    """Return whether a map of this size is filtered by matrix products rather than by the FFT."""
    if _library.wants_plain() or torch.compiler.is_compiling():
        return True
    return device == "cpu" and height + width <= LONGEST_SIDES


def _filtered(input: Tensor, complex_weight: Tensor) -> Tensor:
    height, width = input.shape[2:]
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    products = uses_products(height, width, input.device.type)
    if not products and input.numel() == 0:
        products = True  # FFT libraries refuse empty batches
    weight = _prepared(complex_weight, height, width // 2 + 1, dtype, products)
    x = input.to(dtype)
    if products:
        tracing = torch.compiler.is_compiling() or type(input) not in (Tensor, nn.Parameter)
        make = dft_matrices if tracing else cached_matrices
        out = filter_by_products(x, weight[0], weight[1], make(height, width, dtype, input.device))
    else:
        out = reference.global_filter2d(x, weight[0])
    return out.to(input.dtype)


def _prepared(
    weight: Tensor, rows: int, columns: int, dtype: torch.dtype, products: bool
) -> tuple[Tensor, ...]:
    """Return what :func:`_prepare` makes of a weight, from an earlier call where that is right."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return _prepare(weight, rows, columns, dtype, products)
    # Subclasses are the tensors of tracers; what inference mode made has no count of its changes.
    if type(weight) is not nn.Parameter or weight.is_inference():
        return _prepare(weight, rows, columns, dtype, products)
    entries: dict[Any, tuple[Tensor | None, int, tuple[Tensor, ...]]]
    entries = _PREPARED.setdefault(weight, {})
    key = (rows, columns, dtype, products)
    # The alias keeps the memory, so that no other weight can come to lie at the same address.
    alias, version, made = entries.get(key, _NOTHING)
    changed = (
        alias is None
        or version != weight._version
        or alias.data_ptr() != weight.data_ptr()
        or alias.dtype != weight.dtype
        or alias.shape != weight.shape
    )
    if changed:
        made = _prepare(weight, rows, columns, dtype, products)
        entries.pop(key, None)
        while len(entries) >= _SIZES:
            entries.pop(next(iter(entries)))
        entries[key] = (weight.detach(), weight._version, made)
    return made


def _prepare(
    weight: Tensor, rows: int, columns: int, dtype: torch.dtype, products: bool
) -> tuple[Tensor, ...]:
    """Cast, resize and lay out a weight for one of the two forms."""
    weight = weight.to(dtype)
    # Where sizes are symbols they are not compared: resizing to the own size changes nothing.
    known = isinstance(rows, int) and isinstance(columns, int)
    if not known or tuple(weight.shape[1:3]) != (rows, columns):
        weight = reference.resize_spectrum(weight, rows, columns)
    if products:
        real, imag = weight.permute(3, 1, 2, 0).contiguous().unbind(0)  # H K C
        return real, imag
    return (torch.view_as_complex(weight.contiguous()),)
