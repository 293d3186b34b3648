"""Depthwise convolution with kernels of several sizes: slices of the plain one, as one operator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from implementations import DTYPES, IMPLEMENTATIONS, force, identify, supports
from op_contract import OpContract

from volution.ops import depthwise_conv2d, mixed_depthwise_conv2d
from volution.ops._shared.depthwise import mixed_slices

CONV = torch.ops.volution.mixed_depthwise_conv2d.default
INPUT = torch.ops.volution.mixed_depthwise_conv2d_input.default
WEIGHT = torch.ops.volution.mixed_depthwise_conv2d_weight.default
each_implementation = pytest.mark.parametrize("where", IMPLEMENTATIONS, ids=identify)


@dataclass(frozen=True)
class Case:
    """A map of ``n, height, width``, and channels and kernel side of each slice."""

    id: str
    n: int
    height: int
    width: int
    channels: tuple[int, ...]
    sides: tuple[int, ...]
    bias: bool = False
    gelu: bool = False
    shortcut: bool = False

    @property
    def cut(self):
        return list(self.channels), list(self.sides)

    def map(self):
        size = (self.n, sum(self.channels), self.height, self.width)
        return torch.randn(size, dtype=torch.float64)

    def weight(self):
        """The kernels of all slices, as the dispatcher takes them."""
        pairs = zip(self.channels, self.sides, strict=True)
        return torch.randn(sum(c * k * k for c, k in pairs), dtype=torch.float64)

    def vector(self):
        return torch.randn(sum(self.channels), dtype=torch.float64) if self.bias else None

    def weights(self, flat):
        """The kernels of each slice, as the public function takes them."""
        pairs = list(zip(self.channels, self.sides, strict=True))
        parts = flat.split([c * k * k for c, k in pairs])
        return [part.view(c, 1, k, k) for part, (c, k) in zip(parts, pairs, strict=True)]


CASES = [
    Case("four-sizes", 2, 5, 6, (6, 4, 5, 4), (1, 3, 5, 7), bias=True, shortcut=True),
    Case("one-slice", 1, 4, 3, (5,), (3,)),
    Case("wider-than-image", 1, 2, 3, (4, 9), (11, 1), bias=True),
    Case("whole-vectors", 1, 5, 6, (16, 48, 32, 16), (1, 3, 5, 7), bias=True, shortcut=True),
    Case("large-first", 1, 6, 9, (21, 8), (7, 3), shortcut=True),
    Case("a-channel-each", 2, 4, 5, (1, 1, 1, 1), (1, 3, 5, 7), bias=True, shortcut=True),
    Case("one-pixel", 3, 1, 1, (4, 4), (3, 5), bias=True),
]
DYNAMIC = Case("any-size", 3, 6, 7, (4, 5), (3, 1), bias=True, gelu=True, shortcut=True)
SMALL = Case("small", 2, 3, 4, (2, 1), (3, 1), bias=True, gelu=True, shortcut=True)


class Mixed(OpContract):
    cases = CASES
    small = SMALL
    dynamic = DYNAMIC
    polynomial = replace(SMALL, gelu=False)

    def resized(self, case):
        return replace(case, n=case.n + 1, height=case.height + 2, width=case.width + 3)

    def summands(self, case):
        return max(max(case.sides) ** 2 + 2, case.n * case.height * case.width)


class TestConv(Mixed):
    names = ("input", "weight", "bias")

    def operands(self, case):
        return case.map(), case.weight(), case.vector()

    def apply(self, case, x, flat, bias):
        biases = None if bias is None else bias.split(list(case.channels))
        activation = "gelu" if case.gelu else None
        weights = case.weights(flat)
        return mixed_depthwise_conv2d(
            x, weights, biases, shortcut=case.shortcut, activation=activation
        )

    def expected(self, case, *operands):
        return mixed_slices.reference_conv(*operands, *case.cut, case.gelu, case.shortcut)

    def registered(self, case, *operands):
        return CONV, (*operands, *case.cut, case.gelu, case.shortcut)

    def without_batch(self, operands):
        return operands[0][:0], *operands[1:]


class TestInput(Mixed):
    names = ("grad", "weight")

    def operands(self, case):
        return case.map(), case.weight()

    def apply(self, case, *operands):
        return INPUT(*operands, *case.cut, case.shortcut)

    def expected(self, case, *operands):
        return mixed_slices.reference_input(*operands, *case.cut, case.shortcut)

    def registered(self, case, *operands):
        return INPUT, (*operands, *case.cut, case.shortcut)

    def without_batch(self, operands):
        return operands[0][:0], operands[1]

    # Called by nobody but derivatives, which are not exported.
    test_exports_to_plain_aten = None


class TestWeight(Mixed):
    names = ("grad", "input")

    def operands(self, case):
        return case.map(), case.map()

    def apply(self, case, *operands):
        return WEIGHT(*operands, *case.cut)

    def expected(self, case, *operands):
        return mixed_slices.reference_weight(*operands, *case.cut)

    def registered(self, case, *operands):
        return WEIGHT, (*operands, *case.cut)

    def shape_without_batch(self, shape):
        return tuple(shape)  # a sum over no images

    test_exports_to_plain_aten = None


@each_implementation
@pytest.mark.parametrize("dtype", DTYPES, ids=identify)
@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=identify)
def test_is_the_plain_convolution_of_each_slice(where, dtype, case):
    """To the last bit, GELU and all gradients included."""
    device, implementation = where
    if not supports(implementation, dtype):
        implementation = "reference"
    x = case.map().to(device, dtype, memory_format=torch.channels_last).requires_grad_()
    weights = [w.to(device, dtype).requires_grad_() for w in case.weights(case.weight())]
    biases = [b.to(device, dtype).requires_grad_() for b in case.vector().split(case.channels)]
    leaves = [x, *weights, *biases]
    with force(implementation):
        got = mixed_depthwise_conv2d(x, weights, biases, shortcut=True, activation="gelu")
        parts = [
            depthwise_conv2d(part, w, b, activation="gelu", shortcut=True)
            for part, w, b in zip(x.split(case.channels, 1), weights, biases, strict=True)
        ]
        wanted = torch.cat(parts, 1)
        cotangent = torch.randn_like(got)
        grads = torch.autograd.grad(got, leaves, cotangent)
        wanted_grads = torch.autograd.grad(wanted, leaves, cotangent)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got, wanted)
    # Sums over pixels may run in another order, beside more channels.
    tolerance = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(grads, wanted_grads, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("weights", "biases", "message"),
    [
        ([], None, "at least one slice, got none"),
        ([(4, 1, 3, 3)], None, r"the C = 6 channels of input, got 4 in slices of \[4\]"),
        ([(4, 1, 3, 3), (4, 1, 1, 1)], None, r"got 8 in slices of \[4, 4\]"),
        ([(6, 1, 2, 2)], None, r"weights\[0\] must have .* K_i odd, got \(6, 1, 2, 2\)"),
        ([(6, 2, 3, 3)], None, r"weights\[0\] must have shape"),
        ([(6, 1, 3)], None, r"weights\[0\] must have 4 dimensions"),
        ([(6, 1, 3, 3)], [(6,), (1,)], "each of the 1 slices, got 2"),
        ([(4, 1, 3, 3), (2, 1, 1, 1)], [(2,), (4,)], r"biases\[0\] must have shape"),
    ],
)
def test_message_names_the_culprit(weights, biases, message):
    tensors = [torch.ones(shape) for shape in weights]
    more = None if biases is None else [torch.ones(shape) for shape in biases]
    with pytest.raises(ValueError, match=message):
        mixed_depthwise_conv2d(torch.ones(1, 6, 4, 4), tensors, more)


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match="weights must have the dtype of input"):
        mixed_depthwise_conv2d(torch.ones(1, 2, 4, 4), [torch.ones(2, 1, 3, 3).double()])
    with pytest.raises(ValueError, match="activation must be one of None, 'gelu'"):
        mixed_depthwise_conv2d(torch.ones(1, 2, 4, 4), [torch.ones(2, 1, 3, 3)], activation="relu")
