"""Drawn shapes beside the named ones: whatever is legal must agree with the definition."""

from __future__ import annotations

import pytest
import torch
from implementations import IMPLEMENTATIONS, INTERPRETED, force, identify, supports
from neighbourhood_cases import Case, gather_by_definition

from volution.ops import correlate, gather, reference_ops, scatter, window_offsets

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
st = hypothesis.strategies
# The same examples on every run: a red test must stay red when somebody looks at it.
settings = hypothesis.settings(deadline=None, derandomize=True, database=None)

STEPS = st.integers(-9, 9)
WINDOWS = st.builds(window_offsets, st.sampled_from([1, 3, 5]), st.integers(1, 4))
LISTS = st.lists(st.tuples(STEPS, STEPS), min_size=1, max_size=6).map(
    lambda taps: tuple(step for tap in taps for step in tap)
)
FORMATS = st.sampled_from([torch.contiguous_format, torch.channels_last])


@st.composite
def drawn_cases(draw) -> Case:
    groups = draw(st.integers(1, 4))
    return Case(
        "drawn",
        n=draw(st.integers(0, 3)),
        c=groups * draw(st.sampled_from([1, 2, 3, 5, 8, 17])),
        height=draw(st.integers(1, 10)),
        width=draw(st.integers(1, 10)),
        groups=groups,
        offsets=draw(st.one_of(WINDOWS, LISTS)),
        stride=draw(st.integers(1, 3)),
    )


def results(case: Case, x, w, k) -> list[torch.Tensor]:
    """All three operators on the same three tensors."""
    return [
        gather(x, k, case.offsets, stride=case.stride),
        scatter(w, k, case.offsets, (case.height, case.width), stride=case.stride),
        correlate(w, x, case.offsets, case.groups, stride=case.stride),
    ]


@settings
@hypothesis.given(case=drawn_cases())
def test_reference_follows_the_definition(case):
    x, k = case.full(), case.kernel()
    with reference_ops():
        got = gather(x, k, case.offsets, stride=case.stride)
    torch.testing.assert_close(got, gather_by_definition(case, x, k), rtol=1e-12, atol=1e-12)


@settings
@hypothesis.given(case=drawn_cases())
def test_the_three_are_one_trilinear_form(case):
    x, w, k = case.full(), case.strided(), case.kernel()
    y, z, v = results(case, x, w, k)
    scale = results(case, x.abs(), w.abs(), k.abs())[2].mul(k.abs()).sum()
    forms = torch.stack([(y * w).sum(), (z * x).sum(), (v * k).sum()])
    assert (forms - forms[0]).abs().max() <= 1e-13 * scale


@pytest.mark.parametrize("where", IMPLEMENTATIONS[1:], ids=identify)
def test_kernels_agree_with_the_reference(where):
    device, implementation = where

    # Few examples in the interpreter: it needs half a second for each.
    @hypothesis.settings(settings, max_examples=8 if where == INTERPRETED else 150)
    @hypothesis.given(
        case=drawn_cases(),
        formats=st.tuples(FORMATS, FORMATS),
        dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    )
    def agree(case, formats, dtype):
        hypothesis.assume(supports(implementation, dtype))
        x, w, k = case.full(), case.strided(), case.kernel()
        x, w = (t.to(memory_format=f) for t, f in zip((x, w), formats, strict=True))
        x, w, k = (t.to(device, dtype) for t in (x, w, k))
        with force(implementation):
            got = results(case, x, w, k)
        with reference_ops():
            wanted = results(case, *(t.double() for t in (x, w, k)))
            bounds = results(case, *(t.double().abs() for t in (x, w, k)))
        inner = max(torch.finfo(dtype).eps if dtype == torch.float64 else 2.0**-23, 2.0**-52)
        for result, want, size in zip(got, wanted, bounds, strict=True):
            allowed = torch.finfo(dtype).eps * want.abs() + 2 * (case.summands + 2) * inner * size
            assert bool(((result.double() - want).abs() <= allowed).all())

    force(implementation)  # skips what was not built
    agree()
