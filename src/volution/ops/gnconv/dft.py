r"""The global filter without complex numbers: discrete Fourier transforms as matrix products.

Both transforms of a map of :math:`H` by :math:`W` pixels are separable, so they take four products
with small matrices. Real and imaginary parts are two rows of one matrix. For short sides this is
faster than a fast Fourier transform, which has few channels-last and no odd-sized fast paths, and
any exporter understands it.

Legend: N batch, C channels, K = W // 2 + 1 columns of the half spectrum; 2 is (real, imaginary).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from volution.ops import _library


class Matrices(NamedTuple):
    """The transforms of one size; the product of all has the scale of an identity."""

    columns: Tensor  # 2K W: real rows to the half spectrum
    rows: Tensor  # H2 H2: complex columns to their spectrum
    rows_back_real: Tensor  # H2 H: the part that the inverse takes from real parts
    rows_back_imag: Tensor  # H2 H
    columns_back: Tensor  # W 2K: the half spectrum to real rows


def filter_by_products(input: Tensor, real: Tensor, imag: Tensor, matrices: Matrices) -> Tensor:
    """Multiply a map with a spectrum: ``(N, C, H, W)`` with two real ``(H, K, C)``.

    The result is channels-last in memory.
    """
    n, c, height, width = input.shape
    k = real.shape[1]
    x = input.permute(0, 2, 3, 1).reshape(n * height, width, c)
    x = _apply(matrices.columns, x)  # NH 2K C
    x = _apply(matrices.rows, x.reshape(n, height * 2, k * c))  # N H2 KC
    x = x.reshape(n, height, 2, k, c)
    x_real, x_imag = x.select(2, 0), x.select(2, 1)  # N H K C
    y_real = torch.addcmul(x_real * real, x_imag, imag, value=-1)
    y_imag = torch.addcmul(x_real * imag, x_imag, real)
    y_real, y_imag = (y.reshape(n, height, k * c) for y in (y_real, y_imag))
    y = _apply(matrices.rows_back_real, y_real)
    # The sum would copy y first.
    add = y.baddbmm_ if _library.runs_directly(y) else y.baddbmm
    y = add(matrices.rows_back_imag.expand(n, -1, -1), y_imag)  # N H2 KC
    y = _apply(matrices.columns_back, y.reshape(n * height, 2 * k, c))  # NH W C
    return y.reshape(n, height, width, c).permute(0, 3, 1, 2)


def dft_matrices(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Matrices:
    """Make the matrices; traceable, also where the sizes are symbols."""
    cos, sin, j, n = _waves(width, width // 2 + 1, device)  # K W
    # All columns stand for their conjugates too, but for the constant and, in even widths, the
    # fastest wave; the sines of these two are zero, which drops what should not be there.
    twice = torch.where(2 * j % n == 0, 1.0, 2.0).double() / n  # K 1
    columns = torch.cat([cos, -sin])
    columns_back = torch.cat([cos * twice, -sin * twice]).transpose(0, 1)
    cos, sin, _, n = _waves(height, height, device)  # H H
    # (row out, part out, row in, part in); a spectrum is the sum of x exp(-i angle).
    forth = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], 1)
    side = 2 * height
    back_real = torch.stack([cos, sin], 1).reshape(side, height) / n
    back_imag = torch.stack([-sin, cos], 1).reshape(side, height) / n
    made = (columns, forth.reshape(side, side), back_real, back_imag, columns_back)
    return Matrices(*(matrix.to(dtype).contiguous() for matrix in made))


def _waves(
    size: int, frequencies: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return cosine and sine of ``2 pi j t / size``, the frequencies j, and ``size``.

    All of them as tensors: where the size is a symbol, exporters divide by tensors only.
    """
    t = torch.arange(size, device=device)
    n = t[-1:] + 1
    j = torch.arange(frequencies, device=device)[:, None]
    # Whole turns are taken off in integers: large angles would lose their last digits.
    turn = j * t % n
    angle = turn.double() * (2 * math.pi) / n
    # Half turns exactly zero.
    sin = torch.where(2 * turn % n == 0, torch.zeros_like(angle), angle.sin())
    return angle.cos(), sin, j, n


@lru_cache(maxsize=64)
def cached_matrices(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Matrices:
    """Return the matrices of an earlier call with the same arguments; not for tracers."""
    # A tensor made in inference mode could not be used where gradients are recorded later.
    with torch.inference_mode(False), torch.no_grad():
        return dft_matrices(height, width, dtype, device)


def _apply(matrix: Tensor, batch: Tensor) -> Tensor:
    return torch.bmm(matrix.expand(batch.shape[0], -1, -1), batch)
