"""Dynamic depthwise convolution: arithmetic, the operator contract, what it says of bad arguments,
and the bins that its kernels are generated from."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from implementations import LAYOUTS, identify, lay_out
from op_contract import OpContract
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from volution.ops import (
    depthwise_conv2d,
    dynamic_depthwise_conv2d,
    involution2d,
    reference_ops,
)
from volution.ops.dmixer import reference
from volution.ops.dmixer.idconv import average_bins


@dataclass(frozen=True)
class Case:
    """``n`` images of ``c`` channels, each with ``size`` by ``size`` taps; see ``id`` for why."""

    id: str
    n: int
    c: int
    height: int
    width: int
    size: int = 3
    stride: int = 1
    dilation: int = 1
    bias: bool = True

    @property
    def steps(self) -> dict[str, int]:
        return {"stride": self.stride, "dilation": self.dilation}

    def operands(self) -> list[Tensor | None]:
        shapes = [
            (self.n, self.c, self.height, self.width),
            (self.n, self.c, self.size, self.size),
            (self.n, self.c) if self.bias else None,
        ]
        return [None if s is None else torch.randn(s, dtype=torch.float64) for s in shapes]


CASES = [  # the first three run in Triton's interpreter too
    Case("not-square", 2, 5, 6, 5),
    Case("no-bias-stride2-uneven", 3, 3, 7, 5, stride=2, bias=False),
    Case("kernel-wider-than-image", 2, 4, 3, 2, size=7),
    Case("images-as-channels", 4, 4, 5, 5),
    Case("one-image", 1, 6, 5, 4),
    Case("one-channel", 3, 1, 5, 6),
    Case("one-channel-per-image-of-one", 1, 1, 4, 4),
    Case("dilated", 2, 9, 9, 8, size=5, dilation=2),
    Case("of-the-paper", 2, 24, 14, 14, size=7),
    Case("smallest", 1, 1, 1, 1, size=1),
    Case("many-channels", 2, 112, 7, 7, size=7, bias=False),
]
each_case = pytest.mark.parametrize("case", CASES[:8], ids=identify)


def by_definition(case: Case, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """The formula of the docstring, one number at a time."""
    h, w = -(-case.height // case.stride), -(-case.width // case.stride)
    out = torch.zeros(case.n, case.c, h, w, dtype=x.dtype)
    half = case.size // 2
    for n, c, i, j in itertools.product(range(case.n), range(case.c), range(h), range(w)):
        total = 0.0 if bias is None else bias[n, c]
        for u, v in itertools.product(range(case.size), repeat=2):
            row = case.stride * i + case.dilation * (u - half)
            column = case.stride * j + case.dilation * (v - half)
            if 0 <= row < case.height and 0 <= column < case.width:
                total = total + kernel[n, c, u, v] * x[n, c, row, column]
        out[n, c, i, j] = total
    return out


class TestArithmetic:
    @each_case
    def test_reference_follows_the_definition(self, case):
        operands = case.operands()
        got = reference.dynamic_depthwise_conv2d(*operands, **case.steps)
        torch.testing.assert_close(got, by_definition(case, *operands), rtol=1e-12, atol=1e-12)

    @each_case
    def test_each_image_by_itself(self, case):
        x, kernel, bias = case.operands()
        got = dynamic_depthwise_conv2d(x, kernel, bias, **case.steps)
        for n in range(case.n):
            own = None if bias is None else bias[n]
            wanted = depthwise_conv2d(x[n : n + 1], kernel[n][:, None], own, **case.steps)
            torch.testing.assert_close(got[n : n + 1], wanted, rtol=1e-12, atol=1e-12)

    def test_is_involution_with_a_kernel_constant_in_space(self):
        x, kernel, _ = CASES[0].operands()
        spread = kernel[..., None, None].expand(*kernel.shape, *x.shape[2:])
        wanted = involution2d(x, spread)
        torch.testing.assert_close(dynamic_depthwise_conv2d(x, kernel), wanted)

    def test_commutes_with_a_translation(self):
        """Away from the border, moving the image moves the result."""
        x, kernel, bias = replace(CASES[0], height=16, width=15).operands()
        moved = torch.roll(x, (3, -2), (2, 3))
        inside = (..., slice(5, -5), slice(5, -5))
        got = dynamic_depthwise_conv2d(moved, kernel, bias)
        wanted = torch.roll(dynamic_depthwise_conv2d(x, kernel, bias), (3, -2), (2, 3))
        torch.testing.assert_close(got[inside], wanted[inside])
        assert not torch.allclose(got, wanted)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=identify)
    def test_plain_form_rounds_half_precision_once(self, dtype):
        operands = [x.to(dtype) for x in CASES[8].operands()]
        with reference_ops():
            got = dynamic_depthwise_conv2d(*operands)
        wanted = dynamic_depthwise_conv2d(*(x.double() for x in operands))
        assert got.dtype == dtype
        error = (got.double() - wanted).abs()
        assert (error <= 0.51 * torch.finfo(dtype).eps * wanted.abs() + 1e-4).all()

    def test_plain_form_under_autocast(self):
        operands = [x.float() for x in CASES[0].operands()]
        with torch.autocast("cpu", torch.bfloat16), reference_ops():
            got = dynamic_depthwise_conv2d(*operands)
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(
            got.float(), dynamic_depthwise_conv2d(*operands), rtol=0.05, atol=0.05
        )

    def test_cost_is_that_of_a_depthwise_convolution(self):
        x, kernel, bias = (x.to("meta") for x in CASES[8].operands())
        counter = FlopCounterMode(display=False)
        with counter:
            dynamic_depthwise_conv2d(x, kernel, bias)
        assert counter.get_total_flops() == 2 * 2 * 24 * 14 * 14 * 49


class TestKernels(OpContract):
    cases = CASES
    small = Case("small", 2, 2, 3, 4)
    dynamic = Case("any-size", 4, 9, 6, 7, size=5)
    names = ("input", "kernel", "bias")

    def operands(self, case):
        return case.operands()

    def apply(self, case, *operands):
        return dynamic_depthwise_conv2d(*operands, **case.steps)

    def expected(self, case, *operands):
        return reference.dynamic_depthwise_conv2d(*operands, **case.steps)

    def registered(self, case, *operands):
        overload = torch.ops.volution.dynamic_depthwise_conv2d.default
        return overload, (*operands, case.stride, case.dilation)

    def resized(self, case):
        return replace(case, n=case.n + 1, height=case.height + 2, width=case.width + 3)

    def summands(self, case):
        return case.size**2 + case.height * case.width


class TestArguments:
    """Every message names the culprit, what was expected and what came."""

    @pytest.mark.parametrize(
        ("index", "shape", "message"),
        [
            (0, (4, 7, 7), r"input must have 4 dimensions \(N, C, H, W\), got 3"),
            (0, (2, 4, 0, 7), r"input must be at least 1 pixel high and wide, got \(0, 7\)"),
            (1, (4, 3, 3), r"kernel must have 4 dimensions \(N, C, K, K\), got 3"),
            (1, (2, 4, 2, 2), r"kernel must be square with an odd side.* 2 by 2"),
            (1, (2, 4, 3, 5), r"kernel must be square with an odd side.* 3 by 5"),
            (1, (1, 4, 3, 3), r"kernel must have shape .* = \(2, 4, 3, 3\), got \(1, 4, 3, 3\)"),
            (1, (4, 1, 3, 3), r"kernel must have shape .* = \(2, 4, 3, 3\), got \(4, 1, 3, 3\)"),
            (2, (4,), r"bias must have 2 dimensions \(N, C\), got 1"),
            (2, (1, 4), r"bias must have shape \(N, C\) = \(2, 4\), got \(1, 4\)"),
        ],
    )
    @pytest.mark.parametrize("plain", [False, True], ids=["dispatched", "plain"])
    def test_message_names_the_shape(self, index, shape, message, plain):
        operands = Case("wrong", 2, 4, 7, 7).operands()
        operands[index] = torch.ones(shape, dtype=torch.float64)
        with reference_ops() if plain else nullcontext(), pytest.raises(ValueError, match=message):
            dynamic_depthwise_conv2d(*operands)

    @pytest.mark.parametrize("index", [1, 2])
    def test_message_names_the_dtype(self, index):
        operands = CASES[0].operands()
        operands[index] = operands[index].float()
        message = f"{TestKernels.names[index]} must have the dtype of input, torch.float64"
        with pytest.raises(TypeError, match=message):
            dynamic_depthwise_conv2d(*operands)

    @pytest.mark.parametrize("name", ["stride", "dilation"])
    def test_message_names_the_step(self, name):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got 0"):
            dynamic_depthwise_conv2d(*CASES[0].operands(), **{name: 0})


SIZES = [(7, 7), (14, 21), (13, 18), (5, 30), (1, 3), (56, 9)]


class TestBins:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("size", SIZES, ids=str)
    @pytest.mark.parametrize("side", [1, 3, 7])
    def test_equal_adaptive_pooling_and_the_mean(self, size, side, layout):
        x = lay_out(torch.randn(2, 5, *size, dtype=torch.float64), layout)
        got = average_bins(x, side, mean=True)
        wanted = F.adaptive_avg_pool2d(x, side)
        torch.testing.assert_close(got[:, :, :side, :side], wanted, rtol=1e-12, atol=1e-12)
        corner = got[:, :, side:, side:]
        torch.testing.assert_close(corner, x.mean((2, 3), keepdim=True), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(average_bins(x, side), wanted, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_keeps_the_memory_format(self, memory_format):
        x = torch.randn(2, 5, 9, 8).to(memory_format=memory_format)
        assert average_bins(x, 3).is_contiguous(memory_format=memory_format)

    def test_gradients(self):
        x = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: average_bins(x, 3, mean=True), x)

    def test_what_inference_keeps_serves_training(self):
        x = torch.randn(2, 3, 11, 8)
        with torch.inference_mode():
            kept = average_bins(x, 3)
        x.requires_grad_()
        with torch.no_grad():
            average_bins(x, 3)
        got = average_bins(x, 3)
        got.sum().backward()
        assert torch.equal(kept, got)
        torch.testing.assert_close(x.grad.sum(), torch.tensor(2.0 * 3 * 9))
