"""Convolution with a static and a dynamic kernel: definition, reference, kernels, arguments."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from implementations import identify
from op_contract import OpContract

from volution.ops import window_offsets
from volution.ops.xvolution import static_dynamic
from volution.ops.xvolution.static_dynamic import static_dynamic_conv2d

OPERATOR = torch.ops.volution.static_dynamic_conv2d.default
RIGHT_AND_DOWN = (0, 1, 2, 0, -3, -2)


@dataclass(frozen=True)
class Case:
    """``offsets`` are those of the dynamic kernel, ``side`` and ``dilation`` the static one's.

    ``rest`` names the other operands: s for the scale, b for the bias, r for the residual.
    """

    id: str
    n: int
    c: int
    height: int
    width: int
    groups: int
    offsets: tuple[int, ...]
    side: int = 0
    stride: int = 1
    dilation: int = 1
    rest: str = ""

    @property
    def size(self):
        return -(-self.height // self.stride), -(-self.width // self.stride)

    def operands(self):
        def drawn(*shape):
            return torch.randn(shape, dtype=torch.float64)

        c, taps = self.c, len(self.offsets) // 2
        return (
            drawn(self.n, c, self.height, self.width),
            drawn(self.n, self.groups, taps, *self.size),
            drawn(c, 1, self.side, self.side) if self.side else None,
            drawn(c) if "s" in self.rest else None,
            drawn(c) if "b" in self.rest else None,
            drawn(self.n, c, *self.size) if "r" in self.rest else None,
        )


CASES = [
    Case("all-together", 2, 8, 5, 6, 2, window_offsets(3), 3, rest="sbr"),
    Case("other-windows", 2, 8, 7, 5, 1, RIGHT_AND_DOWN, 3, 2, 2, "sbr"),
    Case("dynamic-only", 1, 6, 4, 5, 3, window_offsets(3)),
    Case("7x7", 1, 40, 9, 8, 1, window_offsets(7), 7, rest="sb"),
    Case("5x5-in-16-lanes", 1, 64, 6, 9, 4, window_offsets(5), 5, rest="sr"),
    Case("5x5-around-3x3", 1, 32, 6, 5, 2, window_offsets(5), 3, rest="sbr"),
    Case("dilated-both", 1, 16, 9, 9, 1, window_offsets(3, 2), 3, dilation=2, rest="s"),
    Case("stride2-uneven", 2, 16, 7, 5, 4, window_offsets(3), 3, 2, rest="br"),
    Case("a-group-per-channel", 2, 12, 5, 4, 12, window_offsets(3), 3, rest="sbr"),
    Case("dynamic-with-residual", 1, 48, 5, 7, 3, window_offsets(3), rest="br"),
    Case("one-column", 1, 16, 9, 1, 1, window_offsets(3), 3, rest="sbr"),
    Case("one-pixel", 2, 16, 1, 1, 2, window_offsets(7), 7, rest="sbr"),
    Case("far-outside", 1, 8, 4, 5, 2, (90, 0, 0, -70), 1, rest="b"),
]
DYNAMIC = Case("any-size", 5, 8, 6, 7, 2, window_offsets(3), 3, rest="sbr")
SMALL = Case("small", 2, 4, 3, 4, 2, (0, 0, -1, 1), 3, 2, rest="sbr")
# Of lower degree: the product of input, kernel and scale is squared already.
POLYNOMIAL = replace(SMALL, rest="b")


def by_definition(case, x, kernel, weight, scale, bias, residual):
    """The formula of the public docstring."""
    out = torch.zeros(case.n, case.c, *case.size, dtype=x.dtype)
    dynamic = list(zip(case.offsets[0::2], case.offsets[1::2], strict=True))
    half = case.side // 2
    static = list(itertools.product(range(case.side), repeat=2))
    for n, c, i, j in itertools.product(*map(range, out.shape)):
        total = 0.0 if residual is None else residual[n, c, i, j]
        total = total + (0 if bias is None else bias[c])
        group = c * case.groups // case.c
        taps = [
            (p, q, kernel[n, group, tap, i, j] * (1 if scale is None else scale[c]))
            for tap, (p, q) in enumerate(dynamic)
        ]
        taps += [
            (case.dilation * (u - half), case.dilation * (v - half), weight[c, 0, u, v])
            for u, v in static
        ]
        for p, q, factor in taps:
            row, column = case.stride * i + p, case.stride * j + q
            if 0 <= row < case.height and 0 <= column < case.width:
                total = total + factor * x[n, c, row, column]
        out[n, c, i, j] = total
    return out


@pytest.mark.parametrize("case", [*CASES[:3], *CASES[7:9], *CASES[-3:]], ids=identify)
def test_reference_follows_the_definition(case):
    operands = case.operands()
    x, kernel, weight, *rest = operands
    kernels = None if weight is None else weight.transpose(0, 1)
    steps = (case.offsets, case.stride, case.dilation)
    got = static_dynamic._reference(x, kernel, kernels, *rest, *steps)
    torch.testing.assert_close(got, by_definition(case, *operands), rtol=1e-12, atol=1e-12)


class TestOperator(OpContract):
    cases = CASES
    small = SMALL
    dynamic = DYNAMIC
    polynomial = POLYNOMIAL
    interpreted = 2
    names = ("input", "kernel", "weight", "scale", "bias", "residual")

    def operands(self, case):
        return case.operands()

    def apply(self, case, x, kernel, weight, scale, bias, residual):
        # Even where compiled for any size: the case is the same object.
        return static_dynamic_conv2d(
            x,
            kernel,
            case.offsets,
            weight=weight,
            scale=scale,
            bias=bias,
            residual=residual,
            stride=case.stride,
            dilation=case.dilation,
        )

    def arranged(self, case, x, kernel, weight, *rest):
        weight = None if weight is None else weight.transpose(0, 1)
        return x, kernel, weight, *rest, case.offsets, case.stride, case.dilation

    def expected(self, case, *operands):
        return static_dynamic._reference(*self.arranged(case, *operands))

    def registered(self, case, *operands):
        return OPERATOR, self.arranged(case, *operands)

    def resized(self, case):
        return replace(case, n=case.n + 1, height=case.height + 2, width=case.width + 3)

    def summands(self, case):
        pixels = case.n * case.size[0] * case.size[1]
        return max(len(case.offsets) // 2 + case.side**2 + 2, case.c, pixels)

    def without_batch(self, operands):
        x, kernel, *rest, residual = operands
        return x[:0], kernel[:0], *rest, None if residual is None else residual[:0]

    def bounds(self, case, operands, cotangent, wanted):
        """The scaled cotangent and both parts of a gradient are stored maps: rounded as such."""
        plain = super().bounds(case, operands, cotangent, wanted)
        sizes = [None if x is None else x.detach().abs() for x in operands]
        _, absolute = self.oracle_of(case, sizes, cotangent.abs())
        eps = torch.finfo(operands[0].dtype).eps
        return [plain[0], *(b + 4 * eps * a for b, a in zip(plain[1:], absolute, strict=True))]

    def oracle_of(self, case, sizes, cotangent):
        leaves = [None if x is None else x.double().cpu().requires_grad_() for x in sizes]
        output = self.expected(case, *leaves)
        given = [x for x in leaves if x is not None]
        return output, torch.autograd.grad(output, given, cotangent.double().cpu())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": torch.ones(1, 3, 9, 5, 5)}, "groups of kernel must divide"),
        ({"kernel": torch.ones(1, 2, 8, 5, 5)}, "each of the 8 taps of kernel"),
        ({"offsets": ()}, "offsets must hold a row and a column"),
        ({"stride": 2}, "kernel must have shape"),
        ({"stride": 0}, "stride must be an integer of at least 1, got 0"),
        ({"dilation": 0}, "dilation must be an integer of at least 1, got 0"),
        ({"weight": torch.ones(8, 1, 2, 2)}, "weight must have shape .* K odd, got K by K = 2"),
        ({"weight": torch.ones(4, 1, 3, 3)}, "weight must have shape"),
        ({"weight": torch.ones(8, 9)}, "weight must have 4 dimensions"),
        ({"scale": torch.ones(4)}, r"scale must have shape \(C\) = \(8,\), got \(4,\)"),
        ({"bias": torch.ones(8, 1)}, "bias must have 1 dimensions"),
        ({"residual": torch.ones(1, 8, 5, 4)}, "residual must have shape"),
    ],
)
def test_message_names_the_culprit(change, message):
    arguments = {"kernel": torch.ones(1, 2, 9, 5, 5), "offsets": window_offsets(3), **change}
    with pytest.raises(ValueError, match=message):
        static_dynamic_conv2d(torch.ones(1, 8, 5, 5), **arguments)


def test_other_dtypes_are_refused():
    x, kernel = torch.ones(1, 4, 3, 3), torch.ones(1, 1, 9, 3, 3)
    with pytest.raises(TypeError, match="scale must have the dtype of input"):
        static_dynamic_conv2d(x, kernel, window_offsets(3), scale=torch.ones(4).double())
