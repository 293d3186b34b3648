"""Drawn depthwise problems beside the named ones: whatever is legal must agree with the oracle."""

from __future__ import annotations

import pytest
import torch
from depthwise_cases import Case, as_kernel, conv_by_definition, input_by_definition, output_bounds
from implementations import IMPLEMENTATIONS, INTERPRETED, check_results, force, identify, supports
from op_problem import each, present

from volution.ops import depthwise_conv2d, reference_ops
from volution.ops._shared.depthwise import reference

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
st = hypothesis.strategies
# The same examples on every run: a red test must stay red when somebody looks at it.
settings = hypothesis.settings(deadline=None, derandomize=True, database=None)

FORMATS = st.sampled_from([torch.contiguous_format, torch.channels_last])
SIZES = st.sampled_from([1, 3, 3, 5, 5, 7, 7, 9, 13, 31])


@st.composite
def drawn_cases(draw, channels: int = 140, sizes=SIZES) -> Case:
    c = draw(st.integers(1, channels))
    return Case(
        "drawn",
        n=draw(st.integers(1, 3)),
        c=c,
        height=draw(st.integers(1, 12)),
        width=draw(st.integers(1, 12)),
        size=draw(sizes),
        stride=draw(st.sampled_from([1, 1, 1, 2, 3, 5, 8])),
        dilation=draw(st.sampled_from([1, 1, 2, 3, 4, 7])),
        own=draw(st.sampled_from(["", "", "w", "b", "wb"])),
        bias=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 1 / 3, -2.0])),
        gelu=draw(st.booleans()),
        gated=draw(st.integers(0, c)),
    )


@settings
@hypothesis.given(case=drawn_cases(9, st.sampled_from([1, 3, 5, 7])))
def test_reference_follows_the_definition(case):
    x, w, b, g = case.operands()
    kernel, grad = as_kernel(w, case.c), case.strided()
    with reference_ops():
        got = depthwise_conv2d(x, w, b, gate=g, **case.options)
    wanted = conv_by_definition(case, x, kernel, b, g)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    got = reference.depthwise_conv2d_input(grad, kernel, x.shape[2:], *case.steps)
    wanted = input_by_definition(case, grad, kernel)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def results(case: Case, operands, cotangent):
    """Output and gradients of the public function."""
    x, w, b, g = operands
    output = depthwise_conv2d(x, w, b, gate=g, **case.options)
    return [output, *torch.autograd.grad(output, present(operands), cotangent.to(output.device))]


@pytest.mark.parametrize("where", IMPLEMENTATIONS[1:], ids=identify)
def test_kernels_agree_with_the_reference(where, poisoned_empty):
    device, implementation = where
    names = ("output", "grad of input", "grad of weight", "third gradient", "fourth gradient")
    # Few and small examples in the interpreter: it needs a second for each.
    slow = where == INTERPRETED
    cases = drawn_cases(20, st.sampled_from([1, 3, 5])) if slow else drawn_cases()

    @hypothesis.settings(settings, max_examples=6 if slow else 150)
    @hypothesis.given(
        case=cases,
        formats=st.tuples(FORMATS, FORMATS, FORMATS),
        dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    )
    def agree(case, formats, dtype):
        hypothesis.assume(supports(implementation, dtype))
        plain = [x if x is None else x.to(dtype) for x in case.operands()]
        exact = each(lambda x: x.double().requires_grad_(), plain)
        cotangent = case.strided().to(dtype)
        with reference_ops():
            wanted = [x.detach() for x in results(case, exact, cotangent.double())]
        x, w, b, g = plain
        x, cotangent = x.to(memory_format=formats[0]), cotangent.to(memory_format=formats[1])
        g = g if g is None else g.to(memory_format=formats[2])
        operands = each(lambda x: x.to(device).requires_grad_(), (x, w, b, g))
        with force(implementation):
            got = results(case, operands, cotangent)
        check_results(got, wanted, output_bounds(case, plain, cotangent, wanted), names)

    force(implementation)  # skips what was not built
    agree()
