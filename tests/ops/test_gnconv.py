"""Recursive gated convolution: the recursion, its layer, float16, the authors' fixtures."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import parity
import pytest
import torch
from implementations import force, identify
from op_contract import JIT_IS_DEPRECATED
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from volution.ops import GlobalLocalFilter, GnConv, gnconv2d, reference_ops
from volution.ops.gnconv import reference

FILTERS = ["depthwise", "global_local"]
ORDERS = [1, 2, 3, 5]


def make(order: int = 4, filter: Any = "depthwise", **kwargs: Any) -> GnConv:
    """A layer of 32 channels in which nothing is switched off."""
    layer = GnConv(32, order, filter=filter, filter_size=(6, 4), **kwargs)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in layer.parameters():
            z = torch.randn(p.shape, generator=generator)
            p.copy_(z / p[0].numel() ** 0.5 if p.dim() > 1 else 0.5 + 0.2 * z)
    return layer


def operands(order: int, projected: bool, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """``p``, ``q``, weights of both ranks, and biases of which one is missing."""
    widths = [2 * 2**k for k in range(order)]
    shapes = list(itertools.pairwise(widths))
    if projected:
        shapes.append((widths[-1], 3))
    p, q = torch.randn(2, widths[0], 4, 3), torch.randn(2, sum(widths), 4, 3)
    weights = [torch.randn(b, a, *[1] * (i % 2 * 2)) for i, (a, b) in enumerate(shapes)]
    biases = [None if i == 1 else torch.randn(b) for i, (_, b) in enumerate(shapes)]
    cast = [[None if x is None else x.to(dtype) for x in xs] for xs in (weights, biases)]
    return p.to(dtype), q.to(dtype), *cast


class TestRecursion:
    def test_by_hand(self):
        p, q = torch.full((1, 1, 1, 1), 3.0), torch.tensor([2.0, 5.0, 7.0]).reshape(1, 3, 1, 1)
        weight, bias = torch.tensor([[10.0], [100.0]]), torch.tensor([1.0, 2.0])
        got = gnconv2d(p, q, [weight], [bias])
        assert got.flatten().tolist() == [(10 * 6 + 1) * 5, (100 * 6 + 2) * 7]
        got = gnconv2d(p, q, [weight, torch.ones(1, 2)], [bias, torch.ones(1)])
        assert got.flatten().tolist() == [61 * 5 + 602 * 7 + 1]

    @pytest.mark.parametrize("projected", [False, True])
    @pytest.mark.parametrize("order", ORDERS)
    def test_follows_the_reference(self, order, projected):
        p, q, weights, biases = operands(order, projected)
        wanted = reference.gnconv2d(p, q, weights, biases)
        assert_close(gnconv2d(p, q, weights, biases), wanted)
        last = [x.contiguous(memory_format=torch.channels_last) for x in (p, q)]
        got = gnconv2d(*last, weights, biases)
        assert_close(got, wanted)
        assert got.is_contiguous(memory_format=torch.channels_last)
        gated = torch.cat([p * q[:, :2], q[:, 2:]], 1)
        assert_close(gnconv2d(None, gated, weights, biases), wanted)

    @pytest.mark.parametrize("order", ORDERS)
    def test_homogeneous_of_degree_n_plus_1(self, order):
        p, q, weights, _ = operands(order, True)
        doubled = gnconv2d(2 * p, 2 * q, weights)
        assert torch.equal(doubled, 2 ** (order + 1) * gnconv2d(p, q, weights))

    @pytest.mark.filterwarnings(JIT_IS_DEPRECATED)
    def test_derivatives(self):
        p, q, weights, biases = operands(3, True)
        leaves = [p, q, *weights, *(b for b in biases if b is not None)]
        leaves = [x.requires_grad_() for x in leaves]

        def function(p: Tensor, q: Tensor, *rest: Tensor) -> Tensor:
            return gnconv2d(p, q, rest[:3], [rest[3], None, rest[4]])

        assert gradcheck(function, leaves, check_forward_ad=True, fast_mode=True)
        assert gradgradcheck(function, leaves, fast_mode=True)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"q": torch.ones(2, 13, 4, 3)}, r"q must have .* 2 \+ 4 \+ 8 = 14, or 6 .* got 13"),
            ({"p": torch.ones(2, 3, 4, 3)}, r"p must have shape .* = \(2, 2, 4, 3\), got \(2, 3"),
            ({"biases": [None]}, "biases must have an entry for each of the 2 weights, got 1"),
            ({"weights": [torch.ones(4, 2), torch.ones(8, 5)]}, r"weights\[1\] must take the 4"),
            ({"weights": [torch.ones(4, 2, 3, 3), torch.ones(8, 4)]}, r"weights\[0\] must have sh"),
            ({"q": torch.ones(14, 4, 3)}, "q must have 4 dimensions"),
        ],
    )
    def test_message_names_the_culprit(self, change, message):
        names = ("p", "q", "weights", "biases")
        arguments = dict(zip(names, operands(3, False, torch.float32), strict=True))
        with pytest.raises(ValueError, match=message):
            gnconv2d(**{**arguments, **change})

    def test_other_dtype(self):
        p, q, weights, biases = operands(2, False)
        with pytest.raises(TypeError, match=r"p must have the dtype of q, torch\.float64, got"):
            gnconv2d(p.float(), q, weights, biases)


class TestFloat16:
    """The product of n + 1 factors of size 100 is beyond 65504; its terms are not."""

    def layer(self, filter: str) -> GnConv:
        layer = make(5, filter)
        with torch.no_grad():
            layer.proj_in.weight *= 30
            # The projection brings the result back into the range.
            layer.proj_out.weight *= 1e-9
        return layer

    @pytest.mark.parametrize("filter", FILTERS)
    @pytest.mark.parametrize("autocast", [False, True])
    def test_stays_finite_and_right(self, filter, autocast):
        layer, x = self.layer(filter), torch.randn(2, 32, 9, 8)
        if filter == "global_local":  # its norm bounds q
            with torch.no_grad():
                layer.dwconv.post_norm.weight *= 30
        inside = gnconv2d(
            *self.maps(layer, x), [pw.weight for pw in layer.pws], [pw.bias for pw in layer.pws]
        )
        assert inside.abs().max() > 65504, "float16 would not overflow here"
        if autocast:
            with torch.autocast("cpu", torch.float16):
                got = layer(x)
            assert got.dtype == torch.float32
        else:
            half = copy.deepcopy(layer).half()
            got = half(x.half())
            assert got.dtype == torch.float16
            # The smallest entries of the projection are lost in float16, before the layer runs.
            layer.proj_out.weight.data = half.proj_out.weight.data.float()
        assert got.isfinite().all()
        assert (got.float() - layer(x)).norm() < 0.01 * layer(x).norm()
        got.float().sum().backward()

    def maps(self, layer: GnConv, x: Tensor) -> tuple[Tensor, Tensor]:
        projected, first = layer.proj_in(x), layer.widths[0]
        return projected[:, :first], layer.dwconv(projected[:, first:]) * layer.scale

    @pytest.mark.parametrize("filter", FILTERS)
    def test_bfloat16_has_the_range_and_rounds_as_elsewhere(self, filter):
        layer, x = self.layer(filter), torch.randn(2, 32, 9, 8)
        want = layer(x)
        got = copy.deepcopy(layer).bfloat16()(x.bfloat16())
        assert got.dtype == torch.bfloat16
        assert (got.float() - want).norm() < 0.03 * want.norm()


class TestLayer:
    @pytest.mark.parametrize("filter", FILTERS)
    @pytest.mark.parametrize("order", [1, 2, 4])
    def test_equals_the_function(self, order, filter):
        layer = make(order, filter, scale=0.3).double()
        x = torch.randn(2, 32, 7, 6, dtype=torch.float64)
        projected, first = layer.proj_in(x), layer.widths[0]
        q = 0.3 * layer.dwconv(projected[:, first:])
        matrices = [*layer.pws, layer.proj_out]
        wanted = reference.gnconv2d(
            projected[:, :first], q, [m.weight for m in matrices], [m.bias for m in matrices]
        )
        assert_close(layer(x), wanted)

    def test_separate_widths_without_projection(self):
        layer = GnConv(24, 3, out_dim=16, proj_out=False)
        assert layer.widths == (4, 8, 16)
        assert not [key for key in layer.state_dict() if key.startswith("proj_out")]
        assert layer(torch.randn(2, 24, 5, 6)).shape == (2, 16, 5, 6)

    def test_filter_of_ones_own(self):
        layer = make(3, lambda width: nn.Conv2d(width, width, 3, padding=1), scale=0.5)
        assert layer.dwconv.weight.shape == (56, 56, 3, 3)
        x = torch.randn(1, 32, 5, 5)
        folded = layer.fuse()
        assert folded.scale == 0.5
        assert_close(folded(x), layer(x), atol=0, rtol=0)

    @pytest.mark.parametrize("filter", FILTERS)
    @pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
    def test_fuse(self, filter, dtype, bound):
        layer, x = make(4, filter, scale=1 / 3).to(dtype), torch.randn(2, 32, 9, 8, dtype=dtype)
        gain = torch.randn(32, dtype=dtype)
        before = copy.deepcopy(layer.state_dict())
        for fused, want in (
            (layer.fuse(), layer(x)),
            (layer.fuse(gain), layer(x) * gain[:, None, None]),
        ):
            assert fused.scale == 1
            assert (fused(x) - want).abs().max() < bound * want.abs().max()
        assert_close(layer.state_dict(), before, atol=0, rtol=0)

    def test_gain_needs_a_projection(self):
        with pytest.raises(ValueError, match="gain needs an output projection"):
            GnConv(32, 2, proj_out=False).fuse(torch.ones(32))

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"order": 0}, "order must be an integer of at least 1, got 0"),
            ({"dim": 40}, "dim must be a multiple of 16 for order 5, got 40; .* are 32 or 48"),
            ({"dim": 5}, "nearest valid widths are 16"),
            ({"out_dim": 40}, "out_dim must be a multiple of 16"),
            (
                {"dim": 48, "filter": "global_local"},
                "dim must be a multiple of 32 for order 5 with a global-local filter, got 48; "
                "the nearest valid widths are 32 or 64",
            ),
            ({"filter": "dense"}, "filter must be 'depthwise', 'global_local' or a function"),
            ({"kernel_size": 4}, "kernel_size must be a positive odd integer, got 4"),
        ],
    )
    def test_bad_arguments(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            GnConv(**{"dim": 32, **kwargs})

    def test_repr_shows_hyperparameters(self):
        assert "GnConv(\n  24, order=3, out_dim=16, scale=1" in repr(GnConv(24, 3, out_dim=16))
        assert "24, h=14, w=8" in repr(GlobalLocalFilter(24))

    @pytest.mark.parametrize("filter", FILTERS)
    def test_cost_is_counted(self, filter):
        """Everything but the filter's transforms, counted as convolutions or matrix products."""
        layer = GnConv(32, 3, filter=filter, device="meta")
        counter = FlopCounterMode(display=False)
        with counter:
            layer(torch.empty(1, 32, 10, 10, device="meta"))
        products = 32 * 64 + 8 * 16 + 16 * 32 + 32 * 32
        products += 56 * 49 if filter == "depthwise" else 28 * 9
        assert counter.get_total_flops() == 2 * 100 * products


@pytest.mark.parametrize("filter", FILTERS)
class TestTracing:
    def test_symbolic_trace(self, filter):
        layer, x = make(4, filter), torch.randn(2, 32, 9, 8)
        assert_close(torch.fx.symbolic_trace(layer)(x), layer(x), atol=0, rtol=0)

    def test_compiles_without_graph_break(self, filter):
        layer = make(4, filter).double()
        torch._dynamo.reset()
        compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
        for size in ((9, 8), (7, 10)):
            x = torch.randn(2, 32, *size, dtype=torch.float64)
            assert_close(compiled(x), layer(x))

    def test_exports_with_dynamic_sizes_without_complex_numbers(self, filter):
        layer, x = make(4, filter).double().eval(), torch.randn(2, 32, 9, 8, dtype=torch.float64)
        sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
        program = torch.export.export(layer, (x,), dynamic_shapes=({**sizes, 3: sizes[2]},))
        for node in program.graph.nodes:
            value = node.meta.get("val")
            assert not (isinstance(value, Tensor) and value.is_complex()), node
            if isinstance(node.target, torch._ops.OpOverload):
                assert node.target.namespace == "aten"
        for shape in ((3, 32, 6, 6), (2, 32, 12, 17)):
            x = torch.randn(shape, dtype=torch.float64)
            assert_close(program.module()(x), layer(x))

    def test_reference_ops(self, filter):
        layer, x = make(4, filter).double(), torch.randn(2, 32, 9, 8, dtype=torch.float64)
        with reference_ops():
            got = layer(x)
        assert_close(got, layer(x))

    def test_trains_under_autocast(self, filter):
        layer, x = make(4, filter), torch.randn(2, 32, 9, 8, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        assert (y.float() - layer(x)).norm() < 0.03 * layer(x).norm()
        y.float().square().mean().backward()
        for name, parameter in [("input", x), *layer.named_parameters()]:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


def _authors_layer(fixture: parity.Fixture) -> nn.Module:
    construct = dict(fixture.meta["construct"])
    if "order" not in construct:
        return GlobalLocalFilter(**construct)
    scale = {"1/3": 1 / 3}.get(construct.get("s"), 1.0)
    if not construct.get("gflayer"):
        return GnConv(construct["dim"], construct["order"], scale=scale)
    size = construct["h"], construct["w"]
    options = {"filter": "global_local", "filter_size": size, "scale": scale}
    return GnConv(construct["dim"], construct["order"], **options)


@parity.needs_fixtures
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=identify)
@pytest.mark.parametrize("implementation", ["reference", "native"])
@pytest.mark.parametrize("name", parity.names("hornet_g"))
def test_equals_the_authors(name, implementation, dtype):
    fixture = parity.load(name)
    with force(implementation):
        parity.compare(fixture, _authors_layer(fixture), dtype)


@parity.needs_fixtures
@pytest.mark.parametrize("name", parity.names("hornet_g"))
def test_keys_are_the_authors_in_their_order(name):
    fixture = parity.load(name)
    assert list(_authors_layer(fixture).state_dict()) == list(fixture.meta["manifest"])
