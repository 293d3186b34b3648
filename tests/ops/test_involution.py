"""Involution: arithmetic, the operator contract, argument errors, the layer, the paper's claim."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import parity
import pytest
import torch
from implementations import CUDA, IMPLEMENTATIONS, force, identify
from op_contract import OpContract
from torch import nn
from torch.nn import functional as F

from volution.ops import Involution2d, correlate, involution2d, reference_ops, window_offsets
from volution.ops.involution import reference


@dataclass(frozen=True)
class Case:
    id: str
    n: int
    c: int
    height: int
    width: int
    groups: int
    size: int
    stride: int = 1
    dilation: int = 1

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        h, w = (-(-side // self.stride) for side in (self.height, self.width))
        return self.n, self.groups, self.size, self.size, h, w


CASES = [  # the id says why the case exists
    Case("odd-square", 2, 8, 7, 7, 2, 3),
    Case("stride2-uneven", 2, 4, 7, 5, 4, 3, 2),
    Case("kernel-wider-than-image", 1, 6, 5, 3, 3, 7),
    Case("dilated", 1, 4, 8, 8, 1, 3, 1, 3),
    Case("smallest", 1, 3, 1, 1, 1, 1),
]
each_case = pytest.mark.parametrize("case", CASES, ids=identify)


def by_definition(case: Case, x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """The formula of the docstring."""
    n, _, _, _, h, w = case.kernel_shape
    out = torch.zeros(n, case.c, h, w, dtype=x.dtype)
    half = case.size // 2
    axes = (case.c, h, w, case.size, case.size)
    for c, i, j, u, v in itertools.product(*map(range, axes)):
        y = case.stride * i + case.dilation * (u - half)
        z = case.stride * j + case.dilation * (v - half)
        if 0 <= y < case.height and 0 <= z < case.width:
            g = c * case.groups // case.c
            out[:, c, i, j] += kernel[:, g, u, v, i, j] * x[:, c, y, z]
    return out


def lively(layer: nn.Module) -> nn.Module:
    """Fill parameters and statistics: fresh norms and biases would hide mistakes."""
    with torch.no_grad():
        for name, tensor in layer.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn_like(tensor)
                tensor.copy_(1 + noise.abs() if name.endswith("running_var") else noise / 2)
    return layer


class TestArithmetic:
    @each_case
    def test_reference_follows_the_definition(self, case):
        x = torch.randn(case.n, case.c, case.height, case.width, dtype=torch.float64)
        kernel = torch.randn(case.kernel_shape, dtype=torch.float64)
        got = reference.involution2d(x, kernel, stride=case.stride, dilation=case.dilation)
        torch.testing.assert_close(got, by_definition(case, x, kernel), rtol=1e-12, atol=1e-12)

    def test_box_kernel_is_average_pooling(self):
        x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
        box = torch.full((2, 3, 3, 3, 4, 5), 1 / 9, dtype=torch.float64)
        torch.testing.assert_close(involution2d(x, box, stride=2), F.avg_pool2d(x, 3, 2, 1))

    @pytest.mark.parametrize("dilation", [1, 2])
    def test_kernel_constant_in_space_is_a_depthwise_convolution(self, dilation):
        x = torch.randn(2, 4, 6, 7, dtype=torch.float64)
        weight = torch.randn(4, 1, 5, 5, dtype=torch.float64)
        kernel = weight.reshape(1, 4, 5, 5, 1, 1).expand(2, -1, -1, -1, 6, 7)
        wanted = F.conv2d(x, weight, padding=2 * dilation, dilation=dilation, groups=4)
        torch.testing.assert_close(involution2d(x, kernel, dilation=dilation), wanted)

    def test_kernel_of_one_tap_scales_pixels(self):
        x = torch.randn(1, 4, 3, 5)
        kernel = torch.randn(1, 2, 1, 1, 3, 5)
        wanted = x * kernel.reshape(1, 2, 3, 5).repeat_interleave(2, 1)
        torch.testing.assert_close(involution2d(x, kernel), wanted)


class TestKernels(OpContract):
    cases = CASES
    small = Case("small", 2, 2, 3, 4, 1, 3, 2)
    dynamic = Case("any-size", 4, 8, 6, 7, 2, 3)

    def operands(self, case):
        x = torch.randn(case.n, case.c, case.height, case.width, dtype=torch.float64)
        return x, torch.randn(case.kernel_shape, dtype=torch.float64)

    def apply(self, case, first, second):
        return involution2d(first, second, stride=case.stride, dilation=case.dilation)

    def expected(self, case, first, second):
        return reference.involution2d(first, second, stride=case.stride, dilation=case.dilation)

    def registered(self, case, first, second):
        offsets = window_offsets(case.size, case.dilation)
        kernel = second.detach().flatten(2, 3).requires_grad_()
        return torch.ops.volution.gather.default, (first, kernel, offsets, case.stride)

    def resized(self, case):
        return replace(case, n=case.n + 1, height=case.height + 2, width=case.width + 3)

    def summands(self, case):
        return max(case.size**2, case.c // case.groups)


class TestArguments:
    """Every message names the culprit, what was expected and what came."""

    @pytest.mark.parametrize(
        ("kernel_shape", "message"),
        [
            ((1, 2, 9, 5, 5), r"kernel must have 6 dimensions .* got 5 with shape"),
            ((1, 2, 2, 2, 5, 5), r"kernel must be square with an odd side.* got K by K = 2 by 2"),
            ((1, 2, 3, 5, 5, 5), r"kernel must be square with an odd side.* got K by K = 3 by 5"),
            ((1, 3, 3, 3, 5, 5), r"the groups of kernel must divide.*=3 and .*=4"),
            ((1, 2, 3, 3, 5, 4), r"kernel must have shape .* = \(1, 2, 9, 5, 5\), got .*5, 4\)"),
            ((2, 2, 3, 3, 5, 5), r"kernel must have shape .* = \(1, 2, 9, 5, 5\), got \(2,"),
        ],
        ids=["rank", "even", "not-square", "groups", "size", "batch"],
    )
    @pytest.mark.parametrize("plain", [False, True], ids=["dispatched", "plain"])
    def test_message_names_the_kernel(self, kernel_shape, message, plain):
        x = torch.ones(1, 4, 5, 5)
        if plain:
            with reference_ops(), pytest.raises(ValueError, match=message):
                involution2d(x, torch.ones(kernel_shape))
        else:
            with pytest.raises(ValueError, match=message):
                involution2d(x, torch.ones(kernel_shape))

    def test_message_names_the_input(self):
        kernel = torch.ones(1, 2, 3, 3, 5, 5)
        with pytest.raises(ValueError, match=r"input must have 4 dimensions \(N, C, H, W\), got 3"):
            involution2d(torch.ones(4, 5, 5), kernel)
        with pytest.raises(TypeError, match=r"input must be floating point, got torch.int64"):
            involution2d(torch.ones(1, 4, 5, 5, dtype=torch.int64), kernel.long())
        with pytest.raises(ValueError, match=r"input must be at least 1 pixel high and wide"):
            involution2d(torch.ones(1, 4, 0, 5), torch.ones(1, 2, 3, 3, 0, 5))

    def test_message_names_dtype_and_device(self):
        x, kernel = torch.ones(1, 4, 5, 5), torch.ones(1, 2, 3, 3, 5, 5)
        with pytest.raises(TypeError, match=r"kernel must have the dtype of input, torch.float32"):
            involution2d(x, kernel.double())
        with pytest.raises((TypeError, RuntimeError), match=r"device"):
            involution2d(x, kernel.to("meta"))

    @pytest.mark.parametrize("name", ["stride", "dilation"])
    @pytest.mark.parametrize("value", [0, -1])
    def test_message_names_the_step(self, name, value):
        x, kernel = torch.ones(1, 4, 5, 5), torch.ones(1, 2, 3, 3, 5, 5)
        with pytest.raises(ValueError, match=rf"{name} must be an integer of at least 1, got"):
            involution2d(x, kernel, **{name: value})

    @pytest.mark.parametrize("value", [1.5, "2", True])
    def test_dilation_must_be_an_integer(self, value):
        x, kernel = torch.ones(1, 4, 5, 5), torch.ones(1, 2, 3, 3, 5, 5)
        with pytest.raises(TypeError, match=r"dilation must be an integer, got"):
            involution2d(x, kernel, dilation=value)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"kernel_size": 4}, "kernel_size must be a positive odd integer, got 4"),
            ({"stride": 0}, "stride must be an integer of at least 1, got 0"),
            ({"dilation": -2}, "dilation must be an integer of at least 1, got -2"),
            ({"groups": 5}, "groups must divide channels, got groups=5 and channels=16"),
            ({"groups": 0}, "groups must be an integer of at least 1, got 0"),
            ({"group_channels": 0}, "group_channels must be an integer of at least 1, got 0"),
            ({"reduction": 0}, "reduction must be an integer of at least 1, got 0"),
        ],
    )
    def test_layer_checks_its_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            Involution2d(16, **arguments)


class TestLayer:
    @pytest.mark.parametrize("stride", [1, 2])
    def test_layer_equals_function_on_its_own_kernel(self, stride):
        layer = lively(Involution2d(8, 3, stride, 2, groups=2)).eval()
        x = torch.randn(2, 8, 7, 6)
        kernel = layer.kernel_generator(x).unflatten(1, (2, 3, 3))
        wanted = involution2d(x, kernel, stride=stride, dilation=2)
        torch.testing.assert_close(layer(x), wanted)
        last = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        assert last.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(last, wanted, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("stride", [1, 2, 3])
    @pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 5), (2, 3)])
    def test_output_size(self, size, stride):
        y = Involution2d(4, 3, stride)(torch.randn(2, 4, *size))
        assert y.shape == (2, 4, *(-(-side // stride) for side in size))

    @pytest.mark.parametrize(
        ("channels", "groups"), [(64, 4), (40, 2), (24, 1), (7, 1), (16, 1), (48, 3), (1, 1)]
    )
    def test_group_rule(self, channels, groups):
        assert Involution2d(channels).groups == groups

    def test_state_dict_keys_are_frozen(self):
        assert list(Involution2d(16).state_dict()) == [
            "kernel_generator.conv1.conv.weight",
            "kernel_generator.conv1.bn.weight",
            "kernel_generator.conv1.bn.bias",
            "kernel_generator.conv1.bn.running_mean",
            "kernel_generator.conv1.bn.running_var",
            "kernel_generator.conv1.bn.num_batches_tracked",
            "kernel_generator.conv2.conv.weight",
            "kernel_generator.conv2.conv.bias",
        ]

    def test_official_keys_load_also_below_a_prefix(self):
        layer = lively(Involution2d(16))
        official = {parity.official_name(k): v.clone() for k, v in layer.state_dict().items()}
        names = list(official)
        fresh = Involution2d(16)
        fresh.load_state_dict(official)
        assert list(official) == names
        net = nn.Sequential(nn.Identity(), Involution2d(16))
        net.load_state_dict({f"1.{name}": value for name, value in official.items()})
        for copy in (fresh, net[1]):
            pairs = zip(copy.state_dict().values(), layer.state_dict().values(), strict=True)
            assert all(itertools.starmap(torch.equal, pairs))

    @pytest.mark.parametrize("flat", [True, False])
    def test_custom_kernel_generator(self, flat):
        class Box(nn.Module):
            def forward(self, x):
                shape = (18,) if flat else (2, 3, 3)
                return x.new_ones(x.shape[0], *shape, *x.shape[2:])

        layer = Involution2d(4, 3, groups=2, kernel_generator=Box())
        assert not list(layer.parameters())
        x = torch.randn(2, 4, 5, 6)
        torch.testing.assert_close(layer(x), 9 * F.avg_pool2d(x, 3, 1, 1))

    def test_repr_shows_hyperparameters(self):
        text = repr(Involution2d(32, 5, 2, 3))
        assert "32, kernel_size=5, stride=2, dilation=3, groups=2" in text

    def test_device_and_dtype(self):
        layer = Involution2d(16, device="meta", dtype=torch.float64)
        floating = [t for t in layer.state_dict().values() if t.is_floating_point()]
        assert {(t.device.type, t.dtype) for t in floating} == {("meta", torch.float64)}
        y = layer(torch.empty(2, 16, 5, 5, device="meta", dtype=torch.float64))
        assert y.shape == (2, 16, 5, 5)

    # One compilation is enough: its graph calls the same kernels. The last is the GPU's, if any.
    @pytest.mark.parametrize(
        ("where", "compiled"),
        [*((where, False) for where in IMPLEMENTATIONS), (("cpu", "native"), True)]
        + [(("cuda", "triton"), True)] * CUDA,
        ids=lambda value: "-".join(value) if isinstance(value, tuple) else f"compiled={value}",
    )
    def test_trains_under_autocast(self, where, compiled):
        device, implementation = where
        torch._dynamo.reset()
        layer = lively(Involution2d(8, 3, 2, groups=2)).to(device)
        run = torch.compile(layer, fullgraph=True, dynamic=True) if compiled else layer
        x = torch.randn(3, 8, 5, 7, device=device, requires_grad=True)
        with force(implementation):
            with torch.autocast(device, torch.bfloat16):
                y = run(x)
            assert y.dtype == torch.bfloat16
            y.float().square().mean().backward()
        for name, parameter in [("input", x), *layer.named_parameters()]:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


class TestSelfAttentionIsASpecialCase:
    """The paper's claim: with query times key as the kernel it is attention in a window."""

    @pytest.mark.parametrize("dilation", [1, 2])
    def test_equals_attention_over_the_window(self, dilation):
        n, heads, width, h, w, size = 2, 2, 4, 6, 5, 3
        q, k, v = (torch.randn(n, heads * width, h, w, dtype=torch.float64) for _ in range(3))
        offsets = window_offsets(size, dilation)
        scale = width**-0.5

        inside = correlate(torch.ones_like(q), torch.ones_like(k), offsets, heads) > 0
        logits = scale * correlate(q, k, offsets, heads)
        kernel = logits.masked_fill(~inside, -torch.inf).softmax(2)
        got = involution2d(v, kernel.unflatten(2, (size, size)), dilation=dilation)

        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        place = torch.stack([rows.flatten(), columns.flatten()])
        apart = place[:, None, :] - place[:, :, None]  # axis, query pixel, key pixel
        taps = set(zip(offsets[0::2], offsets[1::2], strict=True))
        seen = [[(int(y), int(x)) in taps for y, x in row] for row in apart.permute(1, 2, 0)]
        split = (t.unflatten(1, (heads, width)).flatten(3).transpose(2, 3) for t in (q, k, v))
        wanted = F.scaled_dot_product_attention(*split, attn_mask=torch.tensor(seen), scale=scale)
        wanted = wanted.transpose(2, 3).reshape(v.shape)
        torch.testing.assert_close(got, wanted)


@parity.needs_fixtures
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=identify)
@pytest.mark.parametrize("implementation", ["reference", "native"])
@pytest.mark.parametrize("name", parity.names("involution_"))
def test_equals_the_authors(name, implementation, dtype):
    fixture = parity.load(name)
    with force(implementation):
        parity.compare(fixture, Involution2d(**fixture.meta["construct"]), dtype)
