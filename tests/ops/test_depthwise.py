"""Depthwise convolution and its adjoints: definition, reference, kernels, arguments, layer."""

from __future__ import annotations

import pytest
import torch
from depthwise_cases import (
    CASES,
    DYNAMIC,
    POLYNOMIAL,
    SMALL,
    Case,
    as_kernel,
    conv_by_definition,
    input_by_definition,
    output_bounds,
    weight_by_definition,
)
from implementations import IMPLEMENTATIONS, force, identify
from op_contract import OpContract
from torch.nn import functional as F

from volution.ops import _library, depthwise_conv2d
from volution.ops._shared.depthwise import reference

CONV = torch.ops.volution.depthwise_conv2d.default
INPUT = torch.ops.volution.depthwise_conv2d_input.default
WEIGHT = torch.ops.volution.depthwise_conv2d_weight.default
each_case = pytest.mark.parametrize("case", CASES, ids=identify)
each_implementation = pytest.mark.parametrize("where", IMPLEMENTATIONS, ids=identify)


def arguments(case: Case, x, w, b, g):
    """Arrange operands of the public function for the dispatcher and the reference."""
    b = b[None] if b is not None and b.dim() == 1 else b
    return x, as_kernel(w, case.c), b, g, *case.steps, case.scale, case.gelu, case.shortcut


class TestArithmetic:
    @each_case
    def test_reference_follows_the_definition(self, case):
        x, w, b, g = case.operands()
        y, k = case.strided(), case.kernel()
        size, batch = (case.height, case.width), k.shape[0]
        pairs = [
            (
                reference.depthwise_conv2d(*arguments(case, x, w, b, g)),
                conv_by_definition(case, x, as_kernel(w, case.c), b, g),
            ),
            (
                reference.depthwise_conv2d_input(y, k, size, *case.steps, case.shortcut),
                input_by_definition(case, y, k),
            ),
            (
                reference.depthwise_conv2d_weight(y, x, batch, case.size, *case.steps),
                weight_by_definition(case, y, x),
            ),
        ]
        for got, wanted in pairs:
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)

    @each_implementation
    @pytest.mark.parametrize("case", CASES[:4], ids=identify)
    def test_the_three_are_one_trilinear_form(self, case, where):
        device, implementation = where
        x, y, k = (t.to(device) for t in (case.full(), case.strided(), case.kernel()))
        with force(implementation):
            forms = [
                CONV(x, k, None, None, *case.steps, 1.0, False) * y,
                INPUT(y, k, x.shape[2:], *case.steps) * x,
                WEIGHT(y, x, k.shape[0], case.size, *case.steps) * k,
            ]
        sums = torch.stack([form.sum() for form in forms])
        assert (sums - sums[0]).abs().max() < 1e-13 * forms[0].abs().sum() * case.size**2

    @each_implementation
    def test_is_the_convolution_of_the_framework(self, where):
        device, implementation = where
        x = torch.randn(2, 12, 9, 11, device=device)
        w, b = torch.randn(12, 1, 5, 5, device=device), torch.randn(12, device=device)
        with force(implementation):
            got = depthwise_conv2d(x, w, b, stride=2, dilation=3, activation="gelu")
        wanted = F.gelu(F.conv2d(x, w, b, stride=2, padding=6, dilation=3, groups=12))
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)

    @each_implementation
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=identify)
    def test_half_inputs_round_once(self, where, dtype):
        """Four quarters of eps beside 1 make 1 + eps, and are lost in a sum of half precision."""
        device, implementation = where
        eps = torch.finfo(dtype).eps
        x = torch.full((1, 1, 1, 7), eps / 4).to(device, dtype)
        x[..., 0], x[..., 5:] = 1, 0
        if implementation == "native" and dtype == torch.float16:
            implementation = "reference"  # what such a call gets
        with force(implementation):
            total = depthwise_conv2d(x, torch.ones(1, 1, 7, 7, device=device, dtype=dtype))
        assert total[0, 0, 0, 3].item() == 1 + eps

    @each_implementation
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=identify)
    def test_gelu_over_its_whole_range(self, where, dtype):
        """The tails too: exactly the argument far right, nothing far left, never NaN."""
        device, implementation = where
        x = torch.cat([torch.linspace(-30, 30, 2401), torch.tensor([-1e30, -0.0, 1e-30, 1e30])])
        x = x.to(device, dtype).reshape(1, 5, 13, 37)
        with force(implementation):
            got = depthwise_conv2d(x, torch.ones(5, 1, 1, 1).to(x), activation="gelu")
        wanted = x.double() * torch.special.ndtr(x.double())
        inner = torch.finfo(dtype).eps
        # erf is off by some eps, times half of the argument; far left it has to be exactly -1.
        absolute = (8 * inner if dtype == torch.float64 else 2e-7) * (1 + x.abs()).clamp(max=8)
        excess = (got.double() - wanted).abs() - 4 * inner * wanted.abs() - absolute
        assert bool((excess <= 0).all()), excess.max()

    @each_implementation
    def test_nothing_wraps_around_the_border(self, where):
        device, implementation = where
        x = torch.ones(1, 1, 3, 4, device=device)
        corner = torch.zeros(1, 1, 3, 3, device=device)
        corner[..., 0, 2] = 1
        with force(implementation):
            got = depthwise_conv2d(x, corner)
            back = INPUT(x, corner, (3, 4), 1, 1)
        wanted = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]], device=device)
        assert torch.equal(got[0, 0], wanted)
        wanted = torch.tensor([[0.0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]], device=device)
        assert torch.equal(back[0, 0], wanted)

    @each_implementation
    def test_gate_ends_at_its_last_channel(self, where):
        """Also in the middle of a vector of channels; the rest is what it is without a gate."""
        device, implementation = where
        x = torch.randn(1, 40, 4, 5).to(device, memory_format=torch.channels_last)
        w, gate = torch.randn(40, 1, 3, 3, device=device), torch.zeros(1, 21, 4, 5, device=device)
        with force(implementation):
            plain, gated = depthwise_conv2d(x, w), depthwise_conv2d(x, w, gate=gate)
        assert not gated[:, :21].count_nonzero()
        assert torch.equal(gated[:, 21:], plain[:, 21:])


class Depthwise(OpContract):
    cases = CASES
    small = SMALL
    dynamic = DYNAMIC

    def resized(self, case: Case) -> Case:
        return case.resized()


class TestConv(Depthwise):
    polynomial = POLYNOMIAL
    # Its gradients are the other two kernels.
    interpreted = 6
    names = ("input", "weight", "bias", "gate")

    def operands(self, case):
        return case.operands()

    def apply(self, case, *operands):
        x, w, b, g = operands
        return depthwise_conv2d(x, w, b, gate=g, **case.options)

    def expected(self, case, *operands):
        return reference.depthwise_conv2d(*arguments(case, *operands))

    def registered(self, case, *operands):
        return CONV, arguments(case, *operands)

    def bounds(self, case, operands, cotangent, wanted):
        return output_bounds(case, operands, cotangent, wanted)

    def without_batch(self, operands):
        x, w, b, g = operands
        return x[:0], w, b, None if g is None else g[:0]


class TestInput(Depthwise):
    names = ("grad", "weight")

    def operands(self, case):
        return case.strided(), case.kernel()

    def size(self, case, first):
        # Even where compiled for any size, the result's size follows from the operand's.
        return first.shape[2:] if case.stride == 1 else (case.height, case.width)

    def apply(self, case, first, second):
        size = self.size(case, first)
        return _library.call(INPUT, first, second, size, *case.steps, case.shortcut)

    def expected(self, case, first, second):
        size = self.size(case, first)
        return reference.depthwise_conv2d_input(first, second, size, *case.steps, case.shortcut)

    def registered(self, case, first, second):
        size = (case.height, case.width)
        return INPUT, (first, second, size, *case.steps, case.shortcut)

    def summands(self, case):
        return max(case.size**2, case.n * case.h * case.w)

    def without_batch(self, operands):
        return operands[0][:0], operands[1]


class TestWeight(Depthwise):
    names = ("grad", "input")

    def operands(self, case):
        return case.strided(), case.full()

    def batch(self, case, first):
        return first.shape[0] if "w" in case.own else 1

    def apply(self, case, first, second):
        batch = self.batch(case, first)
        return _library.call(WEIGHT, first, second, batch, case.size, *case.steps)

    def expected(self, case, first, second):
        batch = self.batch(case, first)
        return reference.depthwise_conv2d_weight(first, second, batch, case.size, *case.steps)

    def registered(self, case, first, second):
        return WEIGHT, (first, second, self.batch(case, first), case.size, *case.steps)

    def summands(self, case):
        return max(case.size**2, case.n * case.h * case.w)

    def shape_without_batch(self, shape):
        return tuple(shape)  # a sum over no images
