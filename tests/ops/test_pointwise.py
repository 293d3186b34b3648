"""Pointwise convolutions with what follows them: recorded and finished in place, the same."""

from __future__ import annotations

import pytest
import torch
from implementations import lay_out
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from volution.ops import _library
from volution.ops._shared.pointwise import add_scaled, images_at_once, pointwise

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "channels_last", "sliced_channels_last"]
SHAPES = [(2, 8, 5, 3), (1, 8, 1, 1), (0, 8, 5, 3)]


def maps(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> dict[str, Tensor]:
    out = (shape[0], 6, *shape[2:])
    sizes = {"input": shape, "gate": out, "residual": out}
    return {k: lay_out(torch.randn(s).to(dtype), layout) for k, s in sizes.items()}


def plainly(input, weight, bias, activation, gate, residual):
    y = F.conv2d(input.double(), weight.double()[:, :, None, None], bias.double())
    y = F.gelu(y) if activation else y
    y = y * gate.double() if gate is not None else y
    return y + residual.double() if residual is not None else y


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("extras", [(), ("gate",), ("residual",), ("gate", "residual")], ids=str)
def test_recorded_or_not_it_is_the_same_sum(shape, layout, dtype, activation, extras):
    given = maps(shape, dtype, layout)
    before = {name: x.clone() for name, x in given.items()}
    weight, bias = torch.randn(6, 8).to(dtype), torch.randn(6).to(dtype)
    others = {name: given[name] for name in extras}
    recorded = pointwise(given["input"], weight, bias, activation=activation, **others)
    with torch.no_grad():
        quiet = pointwise(given["input"], weight, bias, activation=activation, **others)
    pair = [others.get(name) for name in ("gate", "residual")]
    want = plainly(given["input"], weight, bias, activation, *pair)
    # Three roundings of numbers of some ten.
    tolerance = 64 * torch.finfo(dtype).eps + 2e-6 * (dtype != torch.float64)
    for result in (recorded, quiet):
        assert result.dtype == dtype
        assert_close(result.double(), want, atol=tolerance, rtol=tolerance)
    for name, x in given.items():
        assert torch.equal(x, before[name]), f"{name} was changed"


@pytest.mark.parametrize("scaled", [True, False])
def test_scaled_sum_writes_over_its_branch_only(scaled):
    shortcut, branch, scale = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), torch.randn(3)
    kept, own = shortcut.clone(), branch.clone()
    factor = scale if scaled else None
    want = add_scaled(shortcut, branch, factor)
    assert torch.equal(branch, own)
    with torch.no_grad():
        got = add_scaled(shortcut, branch, factor)
    assert got.data_ptr() == branch.data_ptr()
    assert_close(got, want)
    assert torch.equal(shortcut, kept)


def test_unknown_activation():
    with pytest.raises(ValueError, match="activation must be one of None, 'gelu', got 'relu'"):
        pointwise(torch.ones(1, 2, 3, 3), torch.ones(2, 2), activation="relu")


class TestRunsDirectly:
    def test_it_does_where_nothing_listens(self):
        with torch.no_grad():
            assert _library.runs_directly(torch.ones(1))
        with torch.inference_mode():
            assert _library.runs_directly(torch.ones(1))

    def test_not_where_something_does(self):
        x = torch.ones(2)
        assert not _library.runs_directly(x)
        with torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16):
                assert not _library.runs_directly(x)
            with FlopCounterMode(display=False):
                assert not _library.runs_directly(x)
            with _library.reference_ops():
                assert not _library.runs_directly(x)
            answers = []
            torch.func.vmap(lambda y: answers.append(_library.runs_directly(y)) or y)(x)
            assert answers == [False]
            with torch.autograd.forward_ad.dual_level():
                assert not _library.runs_directly(x)

    def test_every_device_can_be_asked(self):
        with torch.no_grad():
            assert _library.runs_directly(torch.ones(1, device="meta"))

    def test_multiplications_are_counted(self):
        x, weight = torch.ones(1, 4, 3, 3), torch.ones(5, 4)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            pointwise(x, weight, activation="gelu")
        assert counter.get_total_flops() == 2 * 4 * 5 * 9


class TestImagesAtOnce:
    def test_all_where_gradients_are_recorded(self):
        assert images_at_once(torch.empty(9, 4, 512, 512), 64) == 9

    def test_as_many_as_make_a_map_of_16_mib(self):
        x = torch.empty(9, 4, 128, 128)  # 64 channels of it are 4 MiB
        with torch.no_grad():
            assert images_at_once(x, 64) == 4
            assert images_at_once(x, 1) == 9
            assert images_at_once(x, 4096) == 1
            assert images_at_once(x[:0], 64) == 1
