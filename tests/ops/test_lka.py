"""Large-kernel attention: arithmetic, the operator contract, the one large kernel, the layers."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace

import parity
import pytest
import torch
from implementations import LAYOUTS, force, identify, lay_out
from op_contract import OpContract
from op_problem import each, present
from torch import Tensor
from torch.nn import functional as F

from volution.ops import LKA, LKAttention, lka2d
from volution.ops.lka import reference
from volution.ops.lka.layer import decompose


@dataclass(frozen=True)
class Case:
    id: str
    n: int
    c: int
    height: int
    width: int
    near: int = 5
    far: int = 7
    dilation: int = 3
    bias: bool = True

    def operands(self) -> list[Tensor | None]:
        shapes = [
            (self.n, self.c, self.height, self.width),
            (self.c, 1, self.near, self.near),
            (self.c,) if self.bias else None,
            (self.c, 1, self.far, self.far),
            (self.c,) if self.bias else None,
            (self.c, self.c, 1, 1),
            (self.c,) if self.bias else None,
        ]
        return [None if s is None else torch.randn(s, dtype=torch.float64) for s in shapes]


CASES = [  # the id says why the case exists
    Case("not-square", 2, 3, 6, 5, 3, 3, 2),
    Case("no-bias", 2, 4, 4, 5, 3, 3, 2, bias=False),
    Case("smallest", 1, 1, 1, 1, 1, 1, 1),
    Case("of-the-paper", 1, 8, 22, 21),
    Case("smaller-than-the-kernel", 2, 5, 7, 10),
]
each_case = pytest.mark.parametrize("case", CASES[:3], ids=identify)


def by_definition(case: Case, x, w, b, v, b2, p, b3) -> Tensor:
    """The formulas of the docstring, one pixel at a time."""
    zero = torch.zeros(case.c, dtype=x.dtype)

    def depthwise(x: Tensor, kernel: Tensor, bias: Tensor | None, step: int) -> Tensor:
        out = (zero if bias is None else bias)[None, :, None, None].expand(x.shape).clone()
        side = kernel.shape[2]
        for i, j, u, t in itertools.product(*map(range, (*x.shape[2:], side, side))):
            row, column = i + step * (u - side // 2), j + step * (t - side // 2)
            if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                out[:, :, i, j] += kernel[:, 0, u, t] * x[:, :, row, column]
        return out

    far = depthwise(depthwise(x, w, b, 1), v, b2, case.dilation)
    mixed = torch.einsum("ck,nkij->ncij", p[:, :, 0, 0], far)
    return x * (mixed + (zero if b3 is None else b3)[:, None, None])


class TestArithmetic:
    @each_case
    def test_reference_follows_the_definition(self, case):
        operands = case.operands()
        got = reference.lka2d(*operands, dilation=case.dilation)
        torch.testing.assert_close(got, by_definition(case, *operands), rtol=1e-12, atol=1e-12)

    def test_is_quadratic_in_the_map_without_biases(self):
        x, *rest = replace(CASES[0], bias=False).operands()
        got, wanted = lka2d(3 * x, *rest, dilation=2), 9 * lka2d(x, *rest, dilation=2)
        torch.testing.assert_close(got, wanted)

    def test_a_constant_attention_scales_the_map(self):
        x, w, _, v, _, p, b = CASES[0].operands()
        got = lka2d(x, 0 * w, None, v, None, p, b, dilation=2)
        torch.testing.assert_close(got, x * b[:, None, None])

    def test_the_papers_dilation_is_the_cheapest(self):
        """Taps per pixel and channel of a 21 by 21 convolution, taken apart."""
        cost = {d: (2 * d - 1) ** 2 + (-(-21 // d)) ** 2 for d in range(1, 22)}
        assert min(cost, key=cost.get) == 3
        assert cost[3] == sum(side**2 for side in decompose(21, 3)) == 74


class TestKernels(OpContract):
    cases = CASES
    small = Case("small", 2, 2, 3, 4, 3, 3, 2)
    dynamic = Case("any-size", 4, 8, 6, 7, 3, 5, 2)
    names = (
        "input",
        "local_weight",
        "local_bias",
        "dilated_weight",
        "dilated_bias",
        "pointwise_weight",
        "pointwise_bias",
    )
    # Of degree ten along a line, beyond the contract's quotient; gradgradcheck covers order two.
    test_third_derivative = None
    # Only the map has a batch to expand, and that the next test but one does.
    test_expanded_operands = None

    def operands(self, case):
        return case.operands()

    def apply(self, case, *operands):
        return lka2d(*operands, dilation=case.dilation)

    def expected(self, case, *operands):
        return reference.lka2d(*operands, dilation=case.dilation)

    def registered(self, case, *operands):
        return torch.ops.volution.lka2d.default, (*operands, case.dilation)

    def resized(self, case):
        return replace(case, n=case.n + 1, height=case.height + 2, width=case.width + 3)

    def summands(self, case):
        pixels = case.n * case.height * case.width
        return case.near**2 + case.far**2 + case.c + 2 * pixels

    def without_batch(self, operands):
        return [operands[0][:0], *operands[1:]]

    def bounds(self, case, operands, cotangent, wanted):
        """As inherited; also, each of the passes on the way rounds its result to the dtype."""
        sizes = each(lambda x: x.detach().double().cpu().abs().requires_grad_(), operands)
        output = self.expected(case, *sizes)
        weights = cotangent.double().abs()
        absolute = [output.detach(), *torch.autograd.grad(output, present(sizes), weights)]
        dtype = operands[0].dtype
        inner = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
        passes = 3 + 5  # forward, and backward through all of it to the first weight
        relative = passes * torch.finfo(dtype).eps + 2 * (self.summands(case) + 2) * inner
        return [relative * a + torch.finfo(dtype).smallest_normal for a in absolute]


class TestArguments:
    """Every message names the culprit, what was expected and what came."""

    @pytest.mark.parametrize(
        ("index", "shape", "message"),
        [
            (0, (4, 7, 7), r"input must have 4 dimensions \(N, C, H, W\), got 3"),
            (1, (4, 1, 4, 4), r"local_weight must be square with an odd side.* 4 by 4"),
            (1, (4, 4, 3, 3), r"local_weight must have shape .* = \(4, 1, 3, 3\), got"),
            (3, (4, 1, 3, 5), r"dilated_weight must be square with an odd side.* 3 by 5"),
            (3, (5, 1, 3, 3), r"dilated_weight must have shape .* = \(4, 1, 3, 3\), got"),
            (5, (4, 4), r"pointwise_weight must have 4 dimensions"),
            (5, (8, 4, 1, 1), r"pointwise_weight must have shape .* = \(4, 4, 1, 1\), got"),
            (2, (5,), r"local_bias must have shape \(C\) = \(4,\), got \(5,\)"),
            (4, (4, 1), r"dilated_bias must have 1 dimensions"),
            (6, (1,), r"pointwise_bias must have shape \(C\) = \(4,\), got \(1,\)"),
        ],
    )
    def test_message_names_the_shape(self, index, shape, message):
        operands = Case("wrong", 1, 4, 7, 7, 3, 3, 2).operands()
        operands[index] = torch.ones(shape, dtype=torch.float64)
        with pytest.raises(ValueError, match=message):
            lka2d(*operands, dilation=2)

    @pytest.mark.parametrize("index", range(1, 7))
    def test_message_names_the_dtype(self, index):
        operands = CASES[0].operands()
        operands[index] = operands[index].float()
        message = f"{TestKernels.names[index]} must have the dtype of input, torch.float64"
        with pytest.raises(TypeError, match=message):
            lka2d(*operands, dilation=2)

    def test_integers(self):
        x, *rest = CASES[0].operands()
        with pytest.raises(TypeError, match=r"input must be floating point, got torch\.int64"):
            lka2d(x.long(), *rest, dilation=2)

    @pytest.mark.parametrize("value", [0, -3])
    def test_dilation(self, value):
        with pytest.raises(ValueError, match=f"dilation must be an integer of at least 1.*{value}"):
            lka2d(*CASES[0].operands(), dilation=value)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"kernel_size": 24}, r"ceil\(24 / 3\) = 8; take kernel_size=25 with dilation=3"),
            ({"kernel_size": 22}, r"take kernel_size=21 with dilation=3, or dilation=2 with"),
            ({"kernel_size": 4, "dilation": 2}, r"take kernel_size=5 with .*, or dilation=4 with"),
            ({"kernel_size": 0}, "kernel_size must be an integer of at least 1, got 0"),
            ({"dilation": 0}, "dilation must be an integer of at least 1, got 0"),
            ({"dim": 0}, "dim must be an integer of at least 1, got 0"),
        ],
    )
    @pytest.mark.parametrize("layer", [LKA, LKAttention])
    def test_layers_check_their_arguments(self, layer, arguments, message):
        with pytest.raises(ValueError, match=message):
            layer(**{"dim": 8, **arguments})

    def test_what_the_message_suggests_works(self):
        for size, step in itertools.product(range(1, 60), range(1, 12)):
            if -(-size // step) % 2 == 0:
                with pytest.raises(ValueError, match="take") as caught:
                    decompose(size, step)
                found = re.findall("=([0-9]+)", str(caught.value))
                near_size, same_step, near_step, same_size = map(int, found)
                assert (same_step, same_size) == (step, size)
                assert decompose(near_size, step)
                assert decompose(size, near_step)
            else:
                near, far = decompose(size, step)
                assert (near % 2, far % 2) == (1, 1)
                assert near + step * (far - 1) >= size


class TestEquivalentKernel:
    @pytest.mark.parametrize(
        ("kernel_size", "dilation", "reach"), [(21, 3, 23), (9, 2, 11), (15, 5, 19), (5, 1, 5)]
    )
    def test_equals_both_convolutions_in_the_interior(self, kernel_size, dilation, reach):
        layer = LKA(4, kernel_size, dilation, dtype=torch.float64)
        kernel, bias = layer.equivalent_kernel()
        assert kernel.shape == (4, 1, reach, reach)
        assert layer.reach == reach
        x = torch.randn(2, 4, 30, 33, dtype=torch.float64)
        wanted = layer.conv_spatial(layer.conv0(x))
        got = F.conv2d(x, kernel, bias, padding=reach // 2, groups=4)
        margin = dilation * (-(-kernel_size // dilation) // 2)
        inside = (..., slice(margin, 30 - margin), slice(margin, 33 - margin))
        torch.testing.assert_close(got[inside], wanted[inside], rtol=1e-12, atol=1e-12)
        if margin and dilation > 1:
            # The margin is no wider than it has to be.
            outside = (got - wanted).abs().amax((0, 1, 3))
            assert (outside[:margin] > 1e-6).all()

    def test_impulse_response(self):
        layer = LKA(3, dtype=torch.float64)
        kernel, bias = layer.equivalent_kernel()
        impulse = torch.zeros(1, 3, 41, 41, dtype=torch.float64)
        impulse[:, :, 20, 20] = 1
        response = layer.conv_spatial(layer.conv0(impulse)) - bias[:, None, None]
        got = response[0, :, 9:32, 9:32].flip(1, 2)
        torch.testing.assert_close(got, kernel[:, 0], rtol=1e-12, atol=1e-12)

    def test_no_biases(self):
        w, v = (torch.randn(2, 1, side, side) for side in (5, 7))
        kernel, bias = reference.equivalent_kernel(w, None, v, None, 3)
        torch.testing.assert_close(kernel.sum((1, 2, 3)), w.sum((1, 2, 3)) * v.sum((1, 2, 3)))
        assert not bias.any()

    def test_has_gradients(self):
        layer = LKA(3)
        kernel, bias = layer.equivalent_kernel()
        (kernel.square().sum() + bias.square().sum()).backward()
        for child in (layer.conv0, layer.conv_spatial):
            assert all(p.grad.abs().max() > 0 for p in child.parameters())


class TestLayers:
    def test_layer_equals_function_on_its_parameters(self):
        layer = LKA(6, 9, 2)
        x = torch.randn(2, 6, 9, 8)
        wanted = reference.lka2d(x, *layer.parameters(), dilation=2)
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("kernel_size", [1, 3, 7, 21])
    def test_a_layer_of_dilation_one_is_a_plain_depthwise_convolution(self, kernel_size):
        layer = LKA(4, kernel_size, 1)
        assert [c.kernel_size[0] for c in (layer.conv0, layer.conv_spatial)] == [1, kernel_size]
        assert layer.reach == kernel_size

    def test_the_product_takes_no_memory_of_its_own_where_nothing_is_recorded(self):
        layer = LKA(4)
        x = torch.randn(1, 4, 9, 9)
        with torch.no_grad(), torch.profiler.profile() as profile:
            got = layer(x)
        written = [event.name for event in profile.events()]
        assert "aten::mul_" in written
        assert "aten::mul" not in written
        torch.testing.assert_close(got, layer(x).detach())

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("implementation", ["reference", "native"])
    def test_inference_computes_what_training_does(self, implementation, layout):
        """Where nothing is recorded, other kernels finish the pointwise convolutions."""
        layer = LKAttention(16, 9, 2)
        x = lay_out(torch.randn(2, 16, 9, 7), layout)
        with force(implementation):
            want = layer(x).detach()
            with torch.inference_mode():
                got = layer(x)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)

    def test_input_is_untouched_in_inference(self):
        layer = LKAttention(4)
        x = torch.randn(1, 4, 9, 9)
        before = x.clone()
        with torch.inference_mode():
            layer(x)
            layer.spatial_gating_unit(x)
        assert torch.equal(x, before)

    def test_state_dict_keys_are_frozen(self):
        unit = [
            f"spatial_gating_unit.{conv}.{kind}"
            for conv in ("conv0", "conv_spatial", "conv1")
            for kind in ("weight", "bias")
        ]
        first, last = (
            [f"proj_{i}.weight", f"proj_{i}.bias"] for i in (1, 2)
        )  # fmt: skip
        assert list(LKAttention(8).state_dict()) == [*first, *unit, *last]

    def test_repr_shows_hyperparameters(self):
        assert "kernel_size=21, dilation=3, reach=23" in repr(LKAttention(8))

    def test_device_and_dtype(self):
        layer = LKAttention(8, device="meta", dtype=torch.float64)
        assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}
        y = layer(torch.empty(2, 8, 5, 5, device="meta", dtype=torch.float64))
        assert y.shape == (2, 8, 5, 5)

    def test_symbolic_trace(self):
        layer = LKAttention(8)
        x = torch.randn(2, 8, 5, 6)
        traced = torch.fx.symbolic_trace(layer)
        torch.testing.assert_close(traced(x), layer(x), atol=0, rtol=0)

    @pytest.mark.parametrize("compiled", [False, True])
    def test_trains_under_autocast(self, compiled):
        torch._dynamo.reset()
        layer = LKAttention(8, 9, 2)
        run = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
        x = torch.randn(3, 8, 9, 7, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            y = run(x)
        y.float().square().mean().backward()
        for name, parameter in [("input", x), *layer.named_parameters()]:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name

    def test_exports_with_any_size(self):
        layer = LKAttention(8, dtype=torch.float64)
        sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
        x = torch.randn(2, 8, 16, 12, dtype=torch.float64)
        program = torch.export.export(layer, (x,), dynamic_shapes=(sizes,))
        for shape in ((2, 8, 16, 12), (3, 8, 31, 5), (5, 8, 9, 40)):
            x = torch.randn(shape, dtype=torch.float64)
            torch.testing.assert_close(program.module()(x), layer(x))


@parity.needs_fixtures
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=identify)
@pytest.mark.parametrize("implementation", ["reference", "native"])
@pytest.mark.parametrize(
    ("name", "layer"),
    [("van_lka", LKA), ("van_lka_7x10", LKA), ("van_attention", LKAttention)],
)
def test_equals_the_authors(name, layer, implementation, dtype):
    fixture = parity.load(name)
    dim = next(iter(fixture.meta["construct"].values()))
    with force(implementation):
        parity.compare(fixture, layer(dim), dtype)


def test_every_fixture_is_compared():
    """Those of blocks and patch embeddings are the network's, see tests/models/test_van.py."""
    if not parity.available:
        pytest.skip("no parity fixtures")
    layers = {"van_lka", "van_lka_7x10", "van_attention"}
    blocks = {"van_block", "van_mlp", "van_patch_embed_first", "van_patch_embed_next"}
    assert set(parity.names("van_")) == layers | blocks
