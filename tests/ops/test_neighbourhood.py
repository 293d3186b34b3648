"""Gather, scatter and correlate: definition, reference, kernels."""

from __future__ import annotations

import pytest
import torch
from implementations import IMPLEMENTATIONS, force, identify
from neighbourhood_cases import (
    CASES,
    DYNAMIC,
    SMALL,
    Case,
    correlate_by_definition,
    gather_by_definition,
    scatter_by_definition,
)
from op_contract import OpContract

from volution.ops import correlate, gather, scatter
from volution.ops._shared.neighbourhood import reference

each_case = pytest.mark.parametrize("case", CASES, ids=identify)
each_implementation = pytest.mark.parametrize("where", IMPLEMENTATIONS, ids=identify)


class TestArithmetic:
    @each_case
    def test_reference_follows_the_definition(self, case):
        x, w, k = case.full(), case.strided(), case.kernel()
        size = (case.height, case.width)
        pairs = [
            (reference.gather(x, k, case.offsets, case.stride), gather_by_definition(case, x, k)),
            (
                reference.scatter(w, k, case.offsets, size, case.stride),
                scatter_by_definition(case, w, k),
            ),
            (
                reference.correlate(w, x, case.offsets, case.groups, case.stride),
                correlate_by_definition(case, w, x),
            ),
        ]
        for got, wanted in pairs:
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)

    @each_implementation
    @pytest.mark.parametrize("case", CASES[:4], ids=identify)
    def test_the_three_are_one_trilinear_form(self, case, where):
        device, implementation = where
        x, w, k = (t.to(device) for t in (case.full(), case.strided(), case.kernel()))
        with force(implementation):
            y = gather(x, k, case.offsets, stride=case.stride)
            z = scatter(w, k, case.offsets, x.shape[2:], stride=case.stride)
            v = correlate(w, x, case.offsets, case.groups, stride=case.stride)
        forms = torch.stack([(y * w).sum(), (z * x).sum(), (v * k).sum()])
        scale = (y * w).abs().sum()
        assert (forms - forms[0]).abs().max() < 1e-13 * scale

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_inputs_round_once(self, dtype):
        """1 + 7 * 2**-k is exact in float32 and lost in a running sum of half precision."""
        step = torch.finfo(dtype).eps / 4
        x = torch.full((1, 1, 1, 8), step).to(dtype)
        x[..., 0] = 1
        kernel = torch.ones(1, 1, 8, 1, 8, dtype=dtype)
        offsets = tuple(number for column in range(8) for number in (0, column))
        total = gather(x, kernel, offsets)[0, 0, 0, 0]
        assert total == torch.tensor(1 + 7 * step).to(dtype)
        assert total > 1

    def test_nothing_wraps_around_the_border(self):
        x = torch.ones(1, 1, 3, 4)
        kernel = torch.ones(1, 1, 1, 3, 4)
        wanted = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]])
        assert torch.equal(gather(x, kernel, (-1, 1))[0, 0], wanted)
        wanted = torch.tensor([[0.0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]])
        assert torch.equal(scatter(x, kernel, (-1, 1), (3, 4))[0, 0], wanted)


class Neighbourhood(OpContract):
    cases = CASES
    small = SMALL
    dynamic = DYNAMIC

    def resized(self, case: Case) -> Case:
        return case.resized()

    def summands(self, case: Case) -> int:
        return case.summands


class TestGather(Neighbourhood):
    # Its gradients are the other two kernels, so all three see every case.
    interpreted = len(CASES)

    def operands(self, case):
        return case.full(), case.kernel()

    def apply(self, case, first, second):
        return gather(first, second, case.offsets, stride=case.stride)

    def expected(self, case, first, second):
        return reference.gather(first, second, case.offsets, case.stride)

    def registered(self, case, first, second):
        return torch.ops.volution.gather.default, (first, second, case.offsets, case.stride)


class TestScatter(Neighbourhood):
    def operands(self, case):
        return case.strided(), case.kernel()

    def size(self, case, first):
        # Even where compiled for any size, the result's size follows from the operand's.
        if case.stride == 1:
            return first.shape[2:]
        return case.height, case.width

    def apply(self, case, first, second):
        return scatter(first, second, case.offsets, self.size(case, first), stride=case.stride)

    def expected(self, case, first, second):
        size = self.size(case, first)
        return reference.scatter(first, second, case.offsets, size, case.stride)

    def registered(self, case, first, second):
        size = (case.height, case.width)
        return torch.ops.volution.scatter.default, (first, second, case.offsets, size, case.stride)


class TestCorrelate(Neighbourhood):
    def operands(self, case):
        return case.strided(), case.full()

    def apply(self, case, first, second):
        return correlate(first, second, case.offsets, case.groups, stride=case.stride)

    def expected(self, case, first, second):
        return reference.correlate(first, second, case.offsets, case.groups, case.stride)

    def registered(self, case, first, second):
        overload = torch.ops.volution.correlate.default
        return overload, (first, second, case.offsets, case.groups, case.stride)
