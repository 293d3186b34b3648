"""Pixel shift self-attention: arithmetic, the operator contract, arguments, the module."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from implementations import IMPLEMENTATIONS, force, identify
from op_contract import OpContract
from op_problem import each, present
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from volution.ops import PSSA, pssa2d, window_offsets
from volution.ops.xvolution import reference
from volution.ops.xvolution.op import flat_offsets


@dataclass(frozen=True)
class Case:
    id: str
    n: int
    wide: int
    c: int
    height: int
    width: int
    heads: int = 1
    size: int = 3
    stride: int = 1
    offsets: tuple[tuple[int, int], ...] | None = None
    scale: float | None = None
    normalize: str = "none"

    @property
    def taps(self) -> tuple[int, ...]:
        return flat_offsets(self.offsets, self.size)

    @property
    def options(self) -> dict[str, Any]:
        rest = {"scale": self.scale, "normalize": self.normalize}
        return {"heads": self.heads, "stride": self.stride, **rest}

    def operands(self) -> list[Tensor]:
        h, w = (-(-side // self.stride) for side in (self.height, self.width))
        shapes = [(self.wide, h, w), *((c, self.height, self.width) for c in (self.wide, self.c))]
        return [torch.randn(self.n, *shape, dtype=torch.float64) for shape in shapes]


CASES = [  # the id says why the case exists
    Case("not-square", 2, 4, 6, 6, 5, heads=2),
    Case("stride2-uneven", 2, 4, 8, 7, 5, heads=4, stride=2),
    Case("left-right-far", 1, 3, 5, 4, 5, offsets=((0, -3), (0, 3), (9, 0)), scale=-0.5),
    Case("smallest", 1, 1, 1, 1, 1, size=1),
    Case("window-wider-than-image", 1, 16, 16, 3, 5, size=7),
    Case("many-taps-of-few-channels", 1, 2, 32, 6, 7, heads=2, size=5, stride=3),
]
SOFT = [replace(case, id=f"soft-{case.id}", normalize="softmax") for case in CASES]
each_case = pytest.mark.parametrize("case", CASES + SOFT, ids=identify)


def by_definition(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formulas of the docstring, one pixel of one channel at a time."""
    n, _, h, w = q.shape
    out = torch.zeros(n, case.c, h, w, dtype=v.dtype)
    pairs = list(zip(case.taps[0::2], case.taps[1::2], strict=True))
    width, values = case.wide // case.heads, case.c // case.heads
    scale = width**-0.5 if case.scale is None else case.scale
    for image, head, i, j in itertools.product(*map(range, (n, case.heads, h, w))):
        seen, weights = [], []
        for row, column in pairs:
            y, x = case.stride * i + row, case.stride * j + column
            if 0 <= y < case.height and 0 <= x < case.width:
                mine = slice(head * width, (head + 1) * width)
                weights.append(scale * q[image, mine, i, j].dot(k[image, mine, y, x]))
                seen.append(v[image, head * values : (head + 1) * values, y, x])
        if seen:
            a = torch.stack(weights)
            a = a.softmax(0) if case.normalize == "softmax" else a
            out[image, head * values : (head + 1) * values, i, j] = a @ torch.stack(seen)
    return out


class TestArithmetic:
    @each_case
    def test_reference_follows_the_definition(self, case):
        operands = case.operands()
        got = reference.pssa2d(*operands, offsets=case.taps, **case.options)
        torch.testing.assert_close(got, by_definition(case, *operands), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("normalize", ["none", "softmax"])
    @pytest.mark.parametrize("heads", [1, 2])
    def test_a_window_over_the_image_is_global_attention(self, heads, normalize):
        """Where the offsets reach every pixel from every pixel, nothing is approximated."""
        h, w, width = 4, 3, 5
        q, k, v = (torch.randn(2, heads * width, h, w, dtype=torch.float64) for _ in range(3))
        steps = list(itertools.product(range(1 - h, h), range(1 - w, w)))
        got = pssa2d(q, k, v, heads=heads, offsets=steps, normalize=normalize)
        tokens = (t.unflatten(1, (heads, width)).flatten(3).transpose(2, 3) for t in (q, k, v))
        if normalize == "softmax":
            wanted = F.scaled_dot_product_attention(*tokens)
        else:
            q, k, v = tokens
            wanted = width**-0.5 * q @ k.transpose(2, 3) @ v
        torch.testing.assert_close(got, wanted.transpose(2, 3).reshape(got.shape))

    def test_a_scale_of_zero_is_honoured(self):
        q, k, v = CASES[0].operands()
        assert not pssa2d(q, k, v, heads=2, scale=0.0).any()
        # Softmax of equal numbers: the mean of what is inside.
        got = pssa2d(q, k, v, heads=2, scale=0.0, normalize="softmax")
        wanted = F.avg_pool2d(v, 3, 1, 1, count_include_pad=False)
        torch.testing.assert_close(got, wanted)

    def test_offsets_may_be_pairs_or_flat(self):
        q, k, v = CASES[0].operands()
        pairs = list(itertools.product((-1, 0, 1), repeat=2))
        wanted = pssa2d(q, k, v, heads=2)
        assert torch.equal(pssa2d(q, k, v, heads=2, offsets=pairs), wanted)
        assert torch.equal(pssa2d(q, k, v, heads=2, offsets=window_offsets(3)), wanted)


class TestKernels(OpContract):
    cases = CASES
    small = Case("small", 2, 2, 2, 3, 4, stride=2)
    dynamic = Case("any-size", 4, 10, 8, 6, 7, heads=2)
    names = ("q", "k", "v")

    def operands(self, case):
        return case.operands()

    def apply(self, case, *operands):
        return pssa2d(*operands, offsets=case.taps, **case.options)

    def expected(self, case, *operands):
        return reference.pssa2d(*operands, offsets=case.taps, **case.options)

    def registered(self, case, *operands):
        rest = (case.heads, case.taps, case.stride, case.scale, case.normalize)
        return torch.ops.volution.pssa2d.default, (*operands, *rest)

    def resized(self, case):
        return replace(case, n=case.n + 1, height=case.height + 2, width=case.width + 3)

    def summands(self, case):
        taps = len(case.taps) // 2
        return case.wide // case.heads + case.c // case.heads + 2 * taps

    def bounds(self, case, operands, cotangent, wanted):
        """As inherited; also, scaled queries, weights and results round to the dtype."""
        sizes = each(lambda x: x.detach().double().cpu().abs().requires_grad_(), operands)
        positive = replace(case, scale=None if case.scale is None else abs(case.scale))
        output = self.expected(positive, *sizes)
        weights = cotangent.double().abs()
        absolute = [output.detach(), *torch.autograd.grad(output, present(sizes), weights)]
        dtype = operands[0].dtype
        inner = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
        passes = 3 + 3  # forward, and backward through the weights to the queries
        relative = passes * torch.finfo(dtype).eps + 2 * (self.summands(case) + 2) * inner
        return [relative * a + torch.finfo(dtype).smallest_normal for a in absolute]


class TestSoftmax:
    """What the contract's bounds, those of a trilinear form, do not say."""

    @pytest.mark.parametrize("where", IMPLEMENTATIONS[:2], ids=identify)
    @pytest.mark.parametrize("case", SOFT, ids=identify)
    def test_kernels_match_the_reference(self, case, where):
        device, implementation = where
        for dtype, error in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            operands = each(lambda x, t=dtype: x.to(device, t).requires_grad_(), case.operands())
            exact = each(lambda x: x.detach().double().requires_grad_(), operands)
            wanted = reference.pssa2d(*exact, offsets=case.taps, **case.options)
            cotangent = torch.randn_like(wanted)
            with force(implementation):
                got = pssa2d(*operands, offsets=case.taps, **case.options)
                grads = torch.autograd.grad(got, operands, cotangent.to(dtype))
            wants = torch.autograd.grad(wanted, exact, cotangent)
            for ours, theirs in zip((got, *grads), (wanted, *wants), strict=True):
                torch.testing.assert_close(ours.double(), theirs, rtol=error, atol=10 * error)

    @pytest.mark.filterwarnings("ignore:`torch.jit.script`")
    def test_gradcheck_also_without_any_tap_inside(self):
        case = replace(SOFT[2], height=2, width=3)  # columns -3 and 3, row 9: all outside
        operands = each(lambda x: x.requires_grad_(), case.operands())

        def function(*operands: Tensor) -> Tensor:
            return pssa2d(*operands, offsets=case.taps, **case.options)

        assert not function(*operands).any()
        assert all(
            g.isfinite().all() for g in torch.autograd.grad(function(*operands).sum(), operands)
        )
        for taps in ([(0, -1), (0, 1), (5, 0)], [(0, 0), (1, -2)]):
            case = replace(case, offsets=tuple(taps))
            assert gradcheck(function, operands, check_forward_ad=True)
            assert gradgradcheck(function, operands, fast_mode=True)


class Largest(TorchDispatchMode):
    """Remember the most numbers any tensor had that was made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor):
                self.numbers = max(self.numbers, x.numel())
        return out


class TestMemory:
    @pytest.mark.parametrize("where", IMPLEMENTATIONS[:2], ids=identify)
    def test_no_number_per_pixel_tap_and_channel(self, where):
        device, implementation = where
        n, c, size, heads = 2, 32, 12, 2
        case = Case("wide", n, c, c, size, size, heads, 7)
        operands = each(lambda x: x.to(device).requires_grad_(), case.operands())
        with force(implementation), Largest() as largest:
            pssa2d(*operands, heads=heads, kernel_size=7).square().sum().backward()
        pixels = n * size**2
        assert largest.numbers >= pixels * heads * 49
        # Weights for each head, or a padded map; far from 49 numbers for each channel.
        assert largest.numbers <= n * max(size**2 * heads * 49, (size + 6) ** 2 * c)


class TestArguments:
    @pytest.mark.parametrize(
        ("shapes", "options", "message"),
        [
            (((4, 5, 5), (1, 4, 5, 5), (1, 4, 5, 5)), {}, "q must have 4 dimensions"),
            (((1, 4, 5, 5), (1, 6, 5, 5), (1, 4, 5, 5)), {}, r"k must have .*\(1, 4, 5, 5\), got"),
            (((1, 4, 5, 5), (1, 4, 5, 4), (1, 4, 5, 5)), {}, r"k must have .*\(1, 4, 5, 5\), got"),
            (((1, 4, 5, 5),) * 3, {"stride": 2}, r"q must have .* = \(1, 4, 3, 3\), got"),
            (((1, 4, 5, 5),) * 3, {"stride": 0}, "stride must be an integer of at least 1, got 0"),
            (((1, 4, 5, 5),) * 3, {"heads": 0}, "heads must be an integer of at least 1, got 0"),
            (((1, 4, 5, 5),) * 3, {"heads": 3}, "heads must divide the channels of q, got heads=3"),
            (
                ((1, 4, 5, 5), (1, 4, 5, 5), (1, 6, 5, 5)),
                {"heads": 4},
                "heads must divide the channels of v, got heads=4",
            ),
            (((1, 4, 5, 5),) * 3, {"kernel_size": 4}, "kernel_size must be a positive odd integer"),
            (((1, 4, 5, 5),) * 3, {"offsets": []}, "offsets must have at least one pair"),
            (
                ((1, 4, 5, 5),) * 3,
                {"offsets": [(0, 1), (2, 2), (0, 1)]},
                r"offsets must all differ, got \[\(0, 1\)\] more than once",
            ),
            (((1, 4, 5, 5),) * 3, {"offsets": [(0, 1, 2)]}, "offsets must be pairs of integers"),
            (((1, 4, 5, 5),) * 3, {"offsets": [(0, 0.5)]}, "offsets must be pairs of integers"),
            (((1, 4, 5, 5),) * 3, {"offsets": [0, 1, 2]}, "offsets must be pairs .*, or all flat"),
            (((1, 4, 5, 5),) * 3, {"offsets": [0.5, 1]}, "offsets must be pairs of integers"),
            (((1, 4, 5, 5),) * 3, {"normalize": "l2"}, "normalize must be one of 'none', 'softm"),
        ],
    )
    def test_message_names_the_culprit(self, shapes, options, message):
        with pytest.raises(ValueError, match=message):
            pssa2d(*map(torch.ones, shapes), **{"heads": 2, **options})

    def test_dtypes(self):
        q, k, v = CASES[0].operands()
        with pytest.raises(TypeError, match=r"k must have the dtype of q, torch\.float64"):
            pssa2d(q, k.float(), v, heads=2)
        with pytest.raises(TypeError, match=r"v must have the dtype of q, torch\.float64"):
            pssa2d(q, k, v.float(), heads=2)
        with pytest.raises(TypeError, match=r"q must be floating point, got torch\.int64"):
            pssa2d(q.long(), k, v, heads=2)


class TestModule:
    @pytest.mark.parametrize("stride", [1, 2])
    def test_equals_the_function_on_its_projections(self, stride):
        layer = PSSA(6, 8, 5, stride, heads=2, groups=2, qk_channels=4, scale=0.3)
        x = torch.randn(2, 6, 7, 5)
        q, k = layer.query(x)[..., ::stride, ::stride], layer.key(x)
        rest = {"heads": 2, "kernel_size": 5, "stride": stride, "scale": 0.3}
        wanted = pssa2d(q, k, layer.value(x), **rest)
        torch.testing.assert_close(layer(x), wanted)
        assert layer.value.bias is None

    def test_depthwise_values_scale_the_channels(self):
        layer = PSSA(6, heads=2, groups=6)
        x = torch.randn(2, 6, 7, 5)
        values = x * layer.value.weight[:, 0]
        wanted = pssa2d(layer.query(x), layer.key(x), values, heads=2)
        torch.testing.assert_close(layer(x), wanted)

    def test_is_a_polynomial_of_third_degree(self):
        layer = PSSA(6, 8, heads=2, dtype=torch.float64)
        x, step = torch.randn(2, 2, 6, 7, 5, dtype=torch.float64)
        values = torch.stack([layer(x + t * step) for t in range(5)])
        fourth = values[0] - 4 * values[1] + 6 * values[2] - 4 * values[3] + values[4]
        third = values[0] - 3 * values[1] + 3 * values[2] - values[3]
        assert fourth.abs().max() < 1e-10 < 1e-3 < third.abs().max()
        plain = PSSA(6, 8, heads=2, bias=False, dtype=torch.float64)
        torch.testing.assert_close(plain(3 * x), 27 * plain(x))

    @pytest.mark.parametrize("size", [3, 5])
    def test_stacked_layers_reach_one_window_further_each(self, size):
        """Neighbours of neighbours: attention over a window becomes global, layer by layer."""
        side, middle = 21, 10
        layers = [PSSA(4, kernel_size=size, dtype=torch.float64) for _ in range(4)]
        x = torch.randn(1, 4, side, side, dtype=torch.float64, requires_grad=True)
        y = x
        for depth, layer in enumerate(layers, 1):
            y = F.normalize(layer(y), dim=1)  # bounded, and local
            (grad,) = torch.autograd.grad(y[0, :, middle, middle].sum(), x, retain_graph=True)
            reach = depth * (size // 2)
            wanted = torch.zeros(side, side, dtype=torch.bool)
            wanted[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1] = True
            assert torch.equal((grad[0] != 0).any(0), wanted)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"heads": 3}, "heads must divide out_channels, got heads=3 and out_channels=8"),
            ({"heads": 2, "qk_channels": 3}, "heads must divide qk_channels, got heads=2"),
            ({"groups": 5}, "groups must divide in_channels, got groups=5 and in_channels=8"),
            ({"out_channels": 6, "groups": 4}, "groups must divide out_channels, got groups=4"),
            ({"stride": 0}, "stride must be an integer of at least 1, got 0"),
            ({"kernel_size": 2}, "kernel_size must be a positive odd integer, got 2"),
            ({"offsets": ()}, "offsets must have at least one pair"),
            ({"normalize": "sum"}, "normalize must be one of 'none', 'softmax', got 'sum'"),
        ],
    )
    def test_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            PSSA(8, **options)

    def test_state_dict_keys_are_frozen(self):
        names = ["query.weight", "query.bias", "key.weight", "key.bias", "value.weight"]
        assert list(PSSA(8).state_dict()) == names

    def test_symbolic_trace(self):
        layer = nn.Sequential(PSSA(8, stride=2, heads=2))
        x = torch.randn(2, 8, 5, 6)
        assert torch.equal(torch.fx.symbolic_trace(layer)(x), layer(x))
