"""Depthwise problems chosen to hurt, their definition as loops, and their error bounds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from volution.ops._shared.depthwise import reference


@dataclass(frozen=True)
class Case:
    """A full map of ``n, c, height, width`` and ``size`` by ``size`` taps; see ``id`` for why.

    ``own`` names what every image has of its own: w for the kernels, b for the biases. ``bias`` is
    there for a bias, and ``gated`` counts the channels of the gate.
    """

    id: str
    n: int
    c: int
    height: int
    width: int
    size: int
    stride: int = 1
    dilation: int = 1
    own: str = ""
    bias: bool = False
    scale: float = 1.0
    gelu: bool = False
    gated: int = 0
    shortcut: bool = False

    @property
    def h(self) -> int:
        return -(-self.height // self.stride)

    @property
    def w(self) -> int:
        return -(-self.width // self.stride)

    @property
    def steps(self) -> tuple[int, int]:
        return self.stride, self.dilation

    @property
    def options(self) -> dict[str, Any]:
        """What the public function takes beside the tensors."""
        activation = "gelu" if self.gelu else None
        steps = {"stride": self.stride, "dilation": self.dilation}
        rest = {"scale": self.scale, "activation": activation, "shortcut": self.shortcut}
        return {**steps, **rest}

    def full(self) -> Tensor:
        return torch.randn(self.n, self.c, self.height, self.width, dtype=torch.float64)

    def strided(self) -> Tensor:
        return torch.randn(self.n, self.c, self.h, self.w, dtype=torch.float64)

    def weight(self) -> Tensor:
        """Kernels as the public function takes them."""
        shape = (self.n, self.c) if "w" in self.own else (self.c, 1)
        return torch.randn(*shape, self.size, self.size, dtype=torch.float64)

    def kernel(self) -> Tensor:
        """Kernels as the dispatcher takes them."""
        return as_kernel(self.weight(), self.c)

    def operands(self) -> tuple[Tensor | None, ...]:
        """Input, weight, bias and gate."""
        bias = gate = None
        if self.bias:
            shape = (self.n, self.c) if "b" in self.own else (self.c,)
            bias = torch.randn(shape, dtype=torch.float64)
        if self.gated:
            gate = torch.randn(self.n, self.gated, self.h, self.w, dtype=torch.float64)
        return self.full(), self.weight(), bias, gate

    def resized(self) -> Case:
        """The same operator on another batch and image."""
        return replace(self, n=self.n + 1, height=self.height + 2, width=self.width + 3)


def as_kernel(weight: Tensor, channels: int) -> Tensor:
    """Return ``(C, 1, K, K)`` weights as ``(1, C, K, K)``, others as they are."""
    return weight.transpose(0, 1) if weight.shape[:2] == (channels, 1) else weight


# The first three run in Triton's interpreter too, the first two of them in every dtype.
ALL: dict[str, Any] = {"bias": True, "scale": 1 / 3, "gelu": True}
CASES = [
    Case("all-together", 2, 5, 7, 6, 3, **ALL, gated=3),
    Case("stride2-uneven-own-kernels", 3, 3, 7, 5, 3, 2, own="wb", **ALL, gated=3),
    Case("shortcut-of-few-channels", 2, 3, 6, 5, 5, 1, 2, own="w", gelu=True, shortcut=True),
    Case("narrow-gate-over-blocks", 1, 100, 3, 5, 5, gated=37),
    Case("dilated-7x7-on-7x7", 1, 17, 7, 7, 7, 1, 3),
    Case("even-size", 2, 24, 8, 6, 5, bias=True),
    Case("kernel-wider-than-image", 1, 24, 3, 5, 11, gelu=True),
    Case("stride2-dilated", 1, 5, 9, 8, 5, 2, 3, scale=-0.5, bias=True),
    Case("stride4-shares-a-factor-with-dilation", 1, 3, 9, 11, 5, 4, 6, gated=1),
    Case("stride8-11x11", 1, 17, 17, 20, 11, 8, bias=True),
    Case("stride-beyond-image", 2, 5, 4, 3, 3, 9),
    Case("dilation-beyond-image", 1, 5, 4, 5, 3, 1, 9, bias=True),
    Case("one-pixel", 2, 3, 1, 1, 7, **ALL, gated=3),
    Case("one-channel", 3, 1, 5, 6, 3, **ALL, gated=1),
    Case("one-row", 1, 24, 1, 19, 5, gelu=True),
    Case("one-column", 1, 24, 19, 1, 5, gated=24),
    Case("one-tap", 3, 17, 5, 4, 1, bias=True, gelu=True),
    Case("one-tap-strided-own", 3, 5, 5, 4, 1, 3, own="w"),
    Case("31x31", 1, 5, 16, 9, 31),
    Case("wider-than-a-tile", 1, 3, 2, 75, 7, **ALL),
    Case("taller-than-a-tile", 1, 17, 21, 3, 3, **ALL, gated=16),
    Case("many-channels", 1, 100, 6, 5, 7, **ALL, gated=100),
    Case("gate-of-one-channel", 2, 24, 5, 5, 3, gated=1),
    Case("own-kernels-shared-bias", 3, 24, 5, 6, 7, own="w", bias=True),
    Case("shared-kernels-own-biases", 3, 24, 5, 6, 5, own="b", bias=True, gelu=True),
    Case("shortcut", 2, 48, 9, 8, 7, bias=True, shortcut=True, gated=24),
    Case("shortcut-of-one-tap", 1, 40, 6, 5, 1, scale=0.5, shortcut=True),
    Case("three-vectors-of-channels", 1, 48, 6, 9, 5, **ALL),
    Case("scale-of-zero", 1, 5, 4, 4, 3, scale=0.0, bias=True, gated=2),
    Case("photo-like", 1, 64, 14, 14, 7, 1, 3, **ALL, gated=64),
]
DYNAMIC = Case("any-size", 4, 9, 6, 7, 3, **ALL, gated=2)
SMALL = Case("small", 2, 2, 4, 3, 3, 2, **ALL, gated=1)
POLYNOMIAL = replace(SMALL, gelu=False)


def _terms(case: Case):
    """Yield row and column of tap, strided pixel and full pixel of every product."""
    taps = itertools.product(range(case.size), repeat=2)
    for (u, v), i, j in itertools.product(taps, range(case.h), range(case.w)):
        y = case.stride * i + case.dilation * (u - case.size // 2)
        x = case.stride * j + case.dilation * (v - case.size // 2)
        if 0 <= y < case.height and 0 <= x < case.width:
            yield u, v, i, j, y, x


def conv_by_definition(case: Case, x: Tensor, kernel: Tensor, bias: Tensor | None, gate: Any):
    """The formula of the public docstring."""
    out = torch.zeros_like(case.strided())
    for u, v, i, j, y, z in _terms(case):
        out[:, :, i, j] += kernel[:, :, u, v] * x[:, :, y, z]
    if case.shortcut:
        out += x
    for n, c in itertools.product(range(case.n), range(case.c)):
        if bias is not None:
            out[n, c] += bias[n, c] if "b" in case.own else bias[c]
        out[n, c] *= case.scale
        if case.gelu:
            out[n, c] *= torch.special.ndtr(out[n, c])
        if c < case.gated:
            out[n, c] *= gate[n, c]
    return out


def input_by_definition(case: Case, grad: Tensor, kernel: Tensor) -> Tensor:
    """``dx[c, s * i + tap] += w[c, tap] * y[c, i]``."""
    out = torch.zeros_like(case.full())
    for u, v, i, j, y, z in _terms(case):
        out[:, :, y, z] += kernel[:, :, u, v] * grad[:, :, i, j]
    return out + grad if case.shortcut else out


def weight_by_definition(case: Case, grad: Tensor, x: Tensor) -> Tensor:
    """``dw[c, tap] += y[c, i] * x[c, s * i + tap]``."""
    out = torch.zeros(case.n, case.c, case.size, case.size, dtype=x.dtype)
    for u, v, i, j, y, z in _terms(case):
        out[:, :, u, v] += grad[:, :, i, j] * x[:, :, y, z]
    return out if "w" in case.own else out.sum(0, keepdim=True)


# |gelu'| and |gelu''| are nowhere larger.
GELU_SLOPE, GELU_CURVE = 1.13, 0.8


class Rounding:
    """Errors of a result in ``dtype``, as far as rounding may take it from the exact one.

    Beside a sum's own error (the operator on absolute values) every intermediate map that is stored
    in ``dtype`` is rounded once more, and errors grow by the slope of what follows.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        info = torch.finfo(dtype)
        self.eps, self.tiny = info.eps, info.smallest_normal * info.eps
        double = dtype == torch.float64
        self.inner = torch.finfo(torch.float64 if double else torch.float32).eps
        # What erf in float32 is allowed, absolutely.
        self.erf = 8 * self.inner if double else 2e-7

    def stored(self, value: Tensor) -> Tensor:
        """Return what storing a result costs."""
        return self.eps * value.abs() + self.tiny

    def summed(self, products: int, absolute: Tensor) -> Tensor:
        """Return what a sum of products costs, given the sum of their absolute values."""
        return 2 * (products + 2) * self.inner * absolute


def _sent_back(case: Case, r: Rounding, back: Tensor, z: Tensor, error_z: Tensor):
    """Return the gated cotangent before the convolution, and its error."""
    error_back = r.stored(back)
    if case.gelu:
        leaf = z.clone().requires_grad_()
        slope = torch.autograd.grad(F.gelu(leaf).sum(), leaf)[0]
        error_slope = GELU_CURVE * (error_z + r.stored(z)) + 2 * r.erf * (1 + z.abs())
        error_back = (back.abs() + error_back) * error_slope + GELU_SLOPE * error_back
        back = back * slope
        error_back = error_back + r.stored(back)
    if case.scale != 1:
        back = back * case.scale
        error_back = abs(case.scale) * error_back + r.stored(back)
    # What the rounding of an already rounded number adds.
    error_back = error_back * (1 + 4 * r.eps)
    return back, error_back


def output_bounds(case: Case, operands: Any, cotangent: Tensor, wanted: list[Tensor]):
    """Bound output and gradients of the convolution with all that follows it.

    Follows the derivative as it is computed: the cotangent is gated, sent back through GELU (whose
    argument is computed again and stored) and scale, each a stored map, then goes to the operators
    of the three gradients.
    """
    r = Rounding(operands[0].dtype)
    x, w, b, g = (None if t is None else t.detach().double().cpu() for t in operands)
    w = as_kernel(w, case.c)
    b = b[None] if b is not None and b.dim() == 1 else b
    size_b = None if b is None else b.abs()
    taps, pixels = case.size**2, case.n * case.h * case.w
    plain = (*case.steps, case.scale, False, case.shortcut)
    z = reference.depthwise_conv2d(x, w, b, None, *plain)
    absolute = (*case.steps, abs(case.scale), False, case.shortcut)
    size_z = reference.depthwise_conv2d(x.abs(), w.abs(), size_b, None, *absolute)
    error_z = r.summed(taps + 1, size_z) + r.inner * z.abs()
    activated, error = z, error_z
    if case.gelu:
        activated = F.gelu(z)
        error = GELU_SLOPE * error_z + r.erf * (1 + z.abs())
    gate = torch.ones_like(z)
    if g is not None:
        gate[:, : case.gated] = g
    cotangent = cotangent.double()
    bounds = [r.stored(wanted[0]) + gate.abs() * error + r.inner * wanted[0].abs()]

    back, error_back = _sent_back(case, r, cotangent * gate, z, error_z)
    size = back.abs() + error_back

    shape = x.shape[2:]
    spread = [
        reference.depthwise_conv2d_input(t, w.abs(), shape, *case.steps, case.shortcut)
        for t in (error_back, size)
    ]
    met = [
        reference.depthwise_conv2d_weight(t, x.abs(), w.shape[0], case.size, *case.steps)
        for t in (error_back, size)
    ]
    met = [t.transpose(0, 1) if operands[1].shape[1] == 1 < case.c else t for t in met]
    bounds.append(r.stored(wanted[1]) + spread[0] + r.summed(taps, spread[1]))
    bounds.append(r.stored(wanted[2]) + met[0] + r.summed(pixels, met[1]))
    if b is not None:
        parts = error_back.sum((2, 3)) + r.summed(pixels, size.sum((2, 3)))
        parts = parts + r.stored(back.sum((2, 3)))  # each image's sum is stored
        parts = parts if "b" in case.own else parts.sum(0)
        bounds.append((1 + r.eps) * parts + r.stored(wanted[3]))
    if g is not None:
        bounds.append(
            r.stored(wanted[-1])
            + (cotangent.abs() * (error + r.inner * activated.abs()))[:, : case.gated]
        )
    return bounds
